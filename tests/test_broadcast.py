"""A learner group broadcasts to real engines in Ray's workers: to those that are there and those that come later."""

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
import ray

from cluster.actor_pool import poll_once
from data.records import read_prompts
from learner.group import LearnerGroup
from rollout.pool import RolloutPool, RolloutPoolConfig
from rollout.vllm_engine import SamplingConfig
from rollout.worker import SyncReport, WeightCheck
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.learner.groups import learner_group, mixed_rows
from tests.rollout.examples import engine_settings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SYNC_SECONDS = 40.0
GROUP_BYTES = 1 << 20
"""Group size of the learner here, so that a small model has several groups."""
FIRST, SECOND = "rollout-0", "rollout-1"


@pytest.fixture(scope="module")
def rows(world):
    return mixed_rows(world)


@pytest.fixture(scope="module")
def told() -> list[tuple[str, dict]]:
    return []


@pytest.fixture(scope="module")
def pool(world, told):
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    settings = RolloutPoolConfig(
        num_workers=2,
        resources={"CPU": 0.5},
        start_timeout_s=200.0,
        generate_timeout_s=100.0,
        max_groups=8,
        sync_timeout_s=SYNC_SECONDS,
        max_logprob_diff=1e-4,
        heartbeat_timeout_s=60.0,
        metrics_host="127.0.0.1",
    )
    made = RolloutPool(
        settings, engine_settings(world), PLAYGROUND, 0,
        lambda kind, **fields: told.append((kind, fields)),
    )  # fmt: skip
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    made.begin(
        read_prompts(world / "data/train.parquet", vocabulary)[:1], 2, SamplingConfig(temperature=1.0, max_tokens=8)
    )
    made.start()
    yield made
    made.stop()
    ray.shutdown()


def started(world, stage: int) -> LearnerGroup:
    group = learner_group(world, 2, stage, exchange="broadcast")
    group.start()
    ray.get([rank.__ray_call__.remote(_small_groups(GROUP_BYTES)) for rank in group._ranks.values()], timeout=60)
    return group


def _small_groups(size: int) -> Callable[[object], None]:
    def change(rank) -> None:
        from weight_sync.source import WeightSource

        engine = rank._engine
        model, sharded = engine._engine.module.model, engine._settings.zero_stage == 3
        engine._source = lambda: (WeightSource(model, sharded=sharded, group_bytes=size), None)

    return change


def _die_after(groups: int) -> Callable[[object], None]:
    """Kill a worker that has received so many groups and waits for the next."""

    def change(_worker) -> None:
        from weight_sync.broadcast import ProcessGroup

        usual, seen = ProcessGroup.broadcast, []

        def broadcast(group, tensors) -> None:
            if len(seen) == groups:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(1)
            usual(group, tensors)

        ProcessGroup.broadcast = broadcast

    return change


def sync(pool: RolloutPool, group: LearnerGroup, rows: list, **more) -> tuple[dict[str, SyncReport], int]:
    """Return the workers' reports, and the bytes sent to each."""
    sequences = [np.concatenate([row.prompt_ids, row.reply_ids]) for row in rows[:3]]
    published = group.publish(sequences)
    probe = WeightCheck(sequences=sequences, logps=published.probe_logps)
    return pool.update(published.update, 0.5, probe, broadcaster=group, **more), published.update.size


def pids(pool: RolloutPool) -> dict[str, int]:
    calls = {name: actor.__ray_call__.remote(lambda _: os.getpid()) for name, actor in pool._actor_pool._actors.items()}
    return {name: ray.get(call, timeout=60) for name, call in calls.items()}


def until(what: Callable[[], bool], pool: RolloutPool, told: list) -> None:
    deadline = time.monotonic() + 150
    while not what():
        assert time.monotonic() < deadline, told
        poll_once([pool._actor_pool])


@pytest.mark.parametrize("stage", [0, 2])
def test_every_worker_computes_what_the_learner_does(pool, world, rows, stage):
    group = started(world, stage)
    before = pids(pool)
    gaps = []
    for version in (1, 2):
        group.step(rows, 0.4)
        reports, size = sync(pool, group, rows, strict=True)
        assert {name: report.version for name, report in reports.items()} == {FIRST: version, SECOND: version}
        gaps += [report.logprob_diff for report in reports.values()]
    group.stop()
    assert max(gaps) < 1e-4
    assert size == 4 * sum(np.prod(shape) for shape in shapes(world))
    assert pids(pool) == before


def shapes(world) -> list[tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(world / "base/model.safetensors", framework="np") as weights:
        return [tuple(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118


def test_one_that_dies_in_the_middle_is_replaced_and_the_others_go_on(pool, world, rows, told):
    group = started(world, 3)
    group.step(rows, 0.4)
    sync(pool, group, rows, strict=True)
    before = pids(pool)
    group.step(rows, 0.4)
    told.clear()
    dying = pool._actor_pool._actors[SECOND]
    ray.get(dying.__ray_call__.remote(_die_after(2)), timeout=60)
    reports, _ = sync(pool, group, rows)
    assert [fields["member"] for kind, fields in told if kind == "actor_died"] == [SECOND]
    [interrupted] = [fields for kind, fields in told if kind == "sync_interrupted"]
    assert interrupted["member"] == FIRST
    assert "2 of " in interrupted["reason"]
    assert reports[FIRST].version == 2
    assert reports[FIRST].logprob_diff < 1e-4

    # Its replacement gets the weights between syncs: another broadcast, to it alone.
    until(lambda: "actor_ready" in [kind for kind, _ in told], pool, told)
    newest = pool._reports[SECOND, pool._actor_pool.replicas.by_name[SECOND].incarnation]
    assert newest.version == 2
    assert newest.logprob_diff < 1e-4
    # No broadcast during a step, nor after it: then the weights are outdated.
    assert group.can_broadcast()
    group.begin(rows, 0.4)
    assert not group.can_broadcast()
    group.finish()
    assert not group.can_broadcast()
    reports, _ = sync(pool, group, rows, strict=True)
    group.stop()
    assert {name: report.version for name, report in reports.items()} == {FIRST: 3, SECOND: 3}
    assert max(report.logprob_diff for report in reports.values()) < 1e-4
    after = pids(pool)
    assert after[FIRST] == before[FIRST]
    assert after[SECOND] != before[SECOND]
