"""How many members a job needs, from known rates and from the records of a run."""

from pathlib import Path

import pytest
from rich.console import Console

from common.errors import InputError
from configs.load import load_config
from deploy.sizing import Rates, Sizes, forecast, measured_rates, rates_of_run, smallest_sizes
from duet import size
from observability.reply_schema import ReplyProvenance, ReplyRecord
from observability.run_directory import RunDirectory
from reward.scoring import ScoredReply
from tests.controller.examples import card, iteration, reply

RATES = Rates(rollout=0.30, reward=0.05, learner=0.04, sync=0.5, tokens=40)


def test_phases_add_up_without_overlap_and_the_slowest_decides_with_it():
    sizes = Sizes(rollout=4, reward=2, learner=2)
    apart = forecast(RATES, sizes, 64, overlapped=False)
    assert apart.busy == pytest.approx({"rollout": 4.8, "reward": 1.6, "learner": 1.78})
    assert apart.seconds == pytest.approx(4.8 + 1.6 + 1.78)
    together = forecast(RATES, sizes, 64, overlapped=True)
    assert together.seconds == pytest.approx(4.8 + 0.5)  # workers stop for the sync
    assert apart.bottleneck == together.bottleneck == "rollout"
    assert together.idle("learner") == pytest.approx(1 - 1.78 / 5.3)


@pytest.mark.parametrize(("learner", "expected"), [(1, (8, 2)), (2, (15, 3)), (4, (30, 5))])
def test_the_fewest_that_keep_a_learner_busy(learner, expected):
    """0.30 / 0.04 is 7.5 workers a rank, 0.05 / 0.04 is 1.25 servers."""
    sizes = smallest_sizes(RATES, 256, learner, 64)
    assert (sizes.rollout, sizes.reward) == expected
    whole = forecast(RATES, sizes, 256, overlapped=True)
    assert whole.idle("learner") < 0.01
    for role in ("rollout", "reward"):
        fewer = Sizes(**{**vars(sizes), role: getattr(sizes, role) - 1})
        assert forecast(RATES, fewer, 256, overlapped=True).seconds > whole.seconds
    assert vars(smallest_sizes(RATES, 256, learner, 6))["rollout"] == 6  # no more than there are prompts


@pytest.fixture
def recorded(tmp_path, root):
    """A run of two workers and two servers whose iterations took known seconds."""

    def make(iterations: int = 4) -> tuple[Path, object]:
        config = load_config(root / "configs/playground.yaml", [])
        records = RunDirectory.create(tmp_path / "run", config.yaml())
        for number in range(1, iterations + 1):
            seconds = {"rollout": 9.0 if number == 1 else 3.2, "reward": 1.6, "learn": 0.8, "sync": 0.1, "total": 5.7}
            if number == 4:
                seconds["reward"] = 0.8  # with twice the servers, that is the same rate
                records.add_event("scale", iteration=4, value={"reward": 4})
            idle = {role: 1.0 - seconds[role] / seconds["total"] for role in ("rollout", "reward")}
            rows = [judged(number, worker) for worker in ("rollout-0", "rollout-1")]
            records.add_replies(number, rows, ReplyProvenance(raters={}, sampling={}))
            records.add_iteration(iteration(number, replies=32, seconds=seconds, idle=idle))
        return records.directory, config

    def judged(number: int, worker: str) -> ReplyRecord:
        sampled = reply(worker=worker)
        found = ScoredReply(reply=sampled, card=card(total=1.0), scores={"total": 1.0}, advantages=())
        return ReplyRecord(judged=found, routes=[], use=None)

    return make


def test_rates_are_those_of_one_member(recorded):
    found = measured_rates(*recorded())
    assert found.rollout == pytest.approx(3.2 * 2 / 32)
    assert found.reward == pytest.approx(1.6 * 2 / 32)
    assert found.learner == pytest.approx(0.8 * 2 / 32)
    assert found.sync == pytest.approx(0.1)
    assert found.tokens == pytest.approx(1800 / 32)


def test_the_first_iteration_does_not_count(recorded):
    assert measured_rates(*recorded(iterations=2)).rollout == pytest.approx(3.2 * 2 / 32)


def test_a_run_that_has_done_nothing_tells_nothing(recorded):
    with pytest.raises(InputError, match=r"iterations\.parquet does not exist \(yet\)"):
        measured_rates(*recorded(iterations=0))


def test_where_roles_overlap_their_idle_shares_tell():
    """Two workers who work 9 of 10 s, four servers who work 5 of them, two ranks who step for 4."""
    row = dict(iteration=3, replies=100, tokens_text=400, tokens_speech=1600, staleness=1)
    row |= dict(seconds_rollout=0.2, seconds_reward=3.0, seconds_learn=4.0, seconds_sync=0.3, seconds_total=10.0)
    row |= dict(idle_rollout=0.1, idle_reward=0.5, idle_learner=0.6)
    found = rates_of_run([row], lambda _: 2, lambda _: 4, 2)
    assert vars(found) == pytest.approx(
        {"rollout": 2 * 9.0 / 100, "reward": 4 * 5.0 / 100, "learner": 2 * 4.0 / 100, "sync": 0.3, "tokens": 20}
    )


def test_what_is_said(recorded, root, capsys):
    directory, _ = recorded()
    config = load_config(root / "configs/playground.yaml", ["learner.num_workers=1"])
    size.show(Console(width=80), config, size.rates_from_run(directory))
    said = capsys.readouterr().out
    assert "16 prompts × 4 = 64 replies" in said
    # 0.2 s a reply to sample, 0.1 to rate, 0.05 to learn: four workers and two servers for a rank.
    assert "rollout.num_workers=4 reward.num_servers=2 for learner.num_workers=1" in said
    lines = [line.split() for line in said.splitlines() if line.startswith(("configured", "fewest"))]
    # rollout + reward + learner + sync, or the slowest of rollout + sync, reward, learner + sync
    assert [line[-3] for line in lines] == ["19.30", "12.90", "9.70", "3.30"]
    assert [line[-2] for line in lines] == ["rollout"] * 2 + ["learner"] * 2
