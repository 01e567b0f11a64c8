"""Going on with a run: what may change, what is refused, and what is remembered."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from configs.load import load_config
from controller.checkpointing import (
    CheckpointManager,
    check_data_unchanged,
    overrides_after,
    plan_resume,
    seconds_before,
    sizes_before,
)
from data.sampler import EpochSampler
from observability.run_directory import RunDirectory

STATE = {
    "mix": {"smoothed": 0.3, "updates": 4, "override": None},
    "weight_version": 4,
    "prompts": 64,
    "demonstrations": 64,
    "data": {"data.prompts": "1234"},
}


@pytest.fixture
def run(root, tmp_path) -> Path:
    """A run of 8 iterations with a checkpoint of the fourth."""
    config = load_config(
        root / "configs/playground.yaml", ["train.num_steps=8", "run.name=r", f"run.directory={tmp_path}"]
    )
    directory = RunDirectory.create(tmp_path / "r", config.yaml()).directory
    CheckpointManager(directory).write(4, STATE, lambda folder: (folder / "weights").write_bytes(b"w"))
    return directory


def test_a_run_goes_on_from_its_newest_checkpoint_with_its_own_settings(run):
    found = plan_resume(run, [])
    assert found.checkpoint.iteration == 4
    assert found.checkpoint.state == STATE | {"iteration": 4}
    assert found.changes == {}
    assert found.config.train.num_steps == 8


def test_what_decides_no_number_may_change(run):
    found = plan_resume(run, ["rollout.num_workers=3", "rollout.generate_timeout_s=30", "train.num_steps=12"])
    assert found.changes == {
        "rollout.num_workers": (1, 3), "rollout.generate_timeout_s": (600.0, 30.0), "train.num_steps": (8, 12),
    }  # fmt: skip
    found = plan_resume(
        run, ["learner.resources={learner: 1}", "learner.placement_strategy=SPREAD", "weight_sync.backend=filesystem"]
    )
    assert found.changes == {
        "learner.resources.learner": (None, 1.0), "learner.placement_strategy": ("PACK", "SPREAD"),
        "weight_sync.backend": ("shm", "filesystem"),
    }  # fmt: skip


def test_pools_have_the_sizes_that_were_asked_for_last(run):
    found = plan_resume(run, ["reward.decoders.num_workers=2", "reward.num_servers=2"])
    assert found.changes == {"reward.decoders.num_workers": (0, 2), "reward.num_servers": (2, 2)}
    assert sizes_before(run) == {}
    records = RunDirectory.open(run, through=0)
    records.add_event("scale", iteration=2, value={"reward": 3, "decoder": 5})
    assert sizes_before(run) == {"reward": 3, "decoder": 5}
    records.add_event("resumed", iteration=4, changes={key: list(change) for key, change in found.changes.items()})
    assert sizes_before(run) == {"reward": 2, "decoder": 2}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "learner.learning_rate=0.5",
            r"learner\.learning_rate: 0\.0003 → 0\.5\. Allowed to change: .*rollout\.num_workers",
        ),
        ("run.seed=1", r"run\.seed: 0 → 1"),
        ("rollout.batch_size=8", r"rollout\.batch_size: 16 → 8"),
        ("learner.lora.r=4", r"learner\.lora\.r: 0 → 4"),
        ("mix_ratio.ema_decay=0.5", r"mix_ratio\.ema_decay: 0\.9 → 0\.5"),
        ("reward.weights={answer: 1.0}", r"reward\.weights\.answer: 0\.8 → 1\.0; reward\.weights\.heard: 0\.1 → None"),
        ("train.num_steps=3", r"train\.num_steps: 3, but r has done 4 already"),
        ("no.such=1", "unknown configuration key"),
    ],
)
def test_what_decides_a_number_may_not(run, override, words):
    with pytest.raises(InputError, match=words):
        plan_resume(run, [override])


def test_the_length_of_a_cosine_may_not_change(root, tmp_path):
    config = load_config(
        root / "configs/playground.yaml", ["train.num_steps=8", "run.name=c", "learner.min_lr_ratio=0.1"]
    )
    directory = RunDirectory.create(tmp_path / "c", config.yaml()).directory
    with pytest.raises(InputError, match=r"train\.num_steps: 8 → 12"):
        plan_resume(directory, ["train.num_steps=12"])


def test_another_configuration_file_is_compared_with_the_runs_own(root, run, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(
        f"extends: {root / 'configs/playground.yaml'}\ntrain: {{num_steps: 8}}\nanchor: {{batch_size: 4}}\n"
    )
    with pytest.raises(InputError, match=r"anchor\.batch_size: 16 → 4"):
        plan_resume(run, [], [other])


def test_a_run_without_a_checkpoint_begins_again_and_one_that_is_none_is_refused(root, tmp_path):
    config = load_config(root / "configs/playground.yaml", ["train.num_steps=8", "run.name=n"])
    assert plan_resume(RunDirectory.create(tmp_path / "n", config.yaml()).directory, []).checkpoint is None
    with pytest.raises(InputError, match="is not the directory of a run"):
        plan_resume(tmp_path / "nothing", [])


def test_a_run_that_has_come_to_its_end_says_how_to_go_on(run):
    records = RunDirectory.open(run)
    records.write_summary({"iterations": 8})
    records.add_event("finished")
    CheckpointManager(run).write(8, STATE, lambda folder: None)
    with pytest.raises(InputError, match=r"has finished its 8 iterations; to go on, ask for more: train\.num_steps=16"):
        plan_resume(run, [])
    assert plan_resume(run, ["train.num_steps=9"]).checkpoint.iteration == 8


def test_other_data_are_refused():
    check_data_unchanged({"data.prompts": "12"}, {"data.prompts": "12", "data.sft": "34"})
    with pytest.raises(InputError, match=r"data\.prompts is not what it was when the run began"):
        check_data_unchanged({"data.prompts": "12"}, {"data.prompts": "13"})


def test_lambda_set_from_outside_is_set_again_in_iterations_that_are_done_again(run):
    records = RunDirectory.open(run)
    for iteration, value in ((3, 0.1), (6, 0.3), (6, "adaptive")):
        records.add_event("mix", id=str(iteration), iteration=iteration, value=value)
    assert overrides_after(run, 4) == {6: [0.3, "adaptive"]}


def test_the_time_that_a_run_took_does_not_count_the_time_that_it_lay_idle(run):
    lines = [
        ("started", "10:00:00"), ("checkpoint", "10:01:00"),
        ("resumed", "12:00:00"), ("started", "12:00:01"), ("ready", "12:00:31"),
    ]  # fmt: skip
    text = "".join(json.dumps({"time": f"2026-01-01T{at}.000Z", "kind": kind}) + "\n" for kind, at in lines)
    (run / "events.jsonl").write_text(text)
    assert seconds_before(run) == 60.0 + 30.0


@given(count=st.integers(1, 40), taken=st.lists(st.integers(1, 17), min_size=1, max_size=12), cut=st.integers(0, 11))
def test_a_ledger_that_goes_on_deals_out_what_it_would_have(count, taken, cut):
    whole = EpochSampler(count, 7, 0)
    straight = [whole.take(rows) for rows in taken]
    first = EpochSampler(count, 7, 0)
    before = [first.take(rows) for rows in taken[:cut]]
    second = EpochSampler(count, 7, 0)
    second.position = first.position
    assert before + [second.take(rows) for rows in taken[cut:]] == straight
