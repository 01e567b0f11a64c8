"""Reward servers with a judge: its answers outlive the servers, and events are counted once."""

from pathlib import Path

import numpy as np
import pytest
import ray

from data.records import read_demonstrations, read_prompts
from reward.pool import RewardPool
from reward.server import ClassSpec, RewardServerConfig
from reward.types import MissingScore
from speech.families import PLAYGROUND
from speech.types import Finish, Reply, ReplyGroup
from speech.vocabulary import Vocabulary
from tests.reward.judges import KEY, Process

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("judged pool")]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    process = Process(tmp_path_factory.mktemp("judge"), "--key-env", "JUDGE_KEY", "--price", "0.25")
    yield process
    process.end()


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster with the key in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_KEY", KEY)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def groups(world) -> list[ReplyGroup]:
    """Return prompts, each with its demonstration and a truncated reply."""
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    prompts = {prompt.id: prompt for prompt in read_prompts(world / "data/train.parquet", vocabulary)}
    demonstrations = read_demonstrations(world / "data/demonstrations.parquet", vocabulary)

    def reply(ids: np.ndarray, index: int, prompt_id: str) -> Reply:
        return Reply(
            prompt_id=prompt_id,
            index=index,
            token_ids=ids,
            channels=vocabulary.channels(ids),
            logps=np.zeros(len(ids), dtype=np.float32),
            weight_version=0,
            finish=(Finish.STOP, Finish.LENGTH)[index],
            defect=None,
        )

    return [
        ReplyGroup(
            prompt=prompts[d.prompt_id],
            replies=[reply(d.reply_ids, 0, d.prompt_id), reply(d.reply_ids[:9], 1, d.prompt_id)],
        )
        for d in [d for d in demonstrations if d.prompt_id in prompts][:8]
    ]


def pool(world, judge: Process, servers: int, events: list) -> RewardPool:
    settings = RewardServerConfig(
        servers=servers,
        needs={"CPU": 0.5},
        checkpoint=str(world / "base"),
        codec=ClassSpec(target="playground.codec:PlaygroundCodec", kwargs={"path": str(world / "codec")}),
        raters=(
            ClassSpec(target="reward.remote.http_judge:HttpJudge", name="judge", kwargs=judge.arguments()),
            ClassSpec(target="playground.raters:Answer", name="answer", kwargs={}),
        ),
        start_seconds=120,
        score_seconds=120,
        beat_seconds=60,
    )
    return RewardPool(settings, PLAYGROUND, lambda kind, **fields: events.append(kind))


def test_what_a_judge_answered_outlives_its_askers(world, judge, cluster, groups, tmp_path):
    events: list[str] = []
    first = pool(world, judge, 2, events)
    first.start()
    cards = first.score(groups)
    for whole, short in cards:
        assert whole.scores["judge"] == whole.scores["answer"]
        assert whole.details["judge_reason"].startswith(repr(whole.details["text"]))
        assert short.scores["judge"] == MissingScore("truncated reply")
    assert len({whole.number("judge") for whole, _ in cards}) == 2
    asked = judge.counts()["asked"]
    counted = first.counters()["judge"]
    assert asked == counted["calls"] == 8
    assert counted["cost"] == 0.25 * (counted["input_tokens"] + counted["output_tokens"]) > 0
    assert first.circuit_open == {"judge": 0}
    assert first.save_cache(tmp_path / "judges.parquet") == 8

    judge.fail(error=1.0)  # from here on it gives no new answers
    ray.kill(first._actor_pool._actors[first.names[0]])
    assert first.score(groups) == cards
    assert "actor_died" in events
    first.resize(3)
    assert first.score(groups) == cards
    after = first.counters()["judge"]
    assert after["calls"] == counted["calls"]
    assert after["cache_hits"] >= 8
    first.stop()

    second = pool(world, judge, 1, events)
    assert second.load_cache(tmp_path / "judges.parquet") == 8
    second.start()
    assert second.score(groups) == cards
    assert second.save_cache(tmp_path / "again.parquet") == 8
    second.stop()

    third = pool(world, judge, 1, events)
    third.start()
    missing = third.score(groups[:1])[0][0].scores["judge"]
    assert missing == MissingScore("server error", fault="rater")
    third.load_cache(tmp_path / "judges.parquet")
    assert third.score(groups) == cards
    assert third.counters()["judge"]["failures"] == 1
    third.stop()
    assert judge.counts()["asked"] == asked + 2

    logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
    for file in [*tmp_path.glob("*.parquet"), *(path for path in logs.rglob("*") if path.is_file())]:
        assert KEY.encode() not in file.read_bytes(), file
