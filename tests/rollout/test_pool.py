"""Workers prove that they hold the weights sent; the pool reports on workers that are up."""

from types import SimpleNamespace

import pytest

from cluster.replica_state import ReplicaSet
from cluster.waiting import ActorUnusable
from common.errors import InputError
from rollout.pool import RolloutPool, StaleWeights, check_probe
from rollout.vllm_engine import PartialWeightUpdate
from rollout.worker import RolloutWorker, SyncReport, WeightCheck
from weight_sync.update import WeightUpdate


def report(gap: float, version: int = 7) -> SyncReport:
    return SyncReport(version=version, logprob_diff=gap, seconds=0.1)


def test_a_worker_with_other_weights_is_named_with_its_difference():
    check_probe("rollout-0", report(9e-4), 7, 1e-3)
    with pytest.raises(StaleWeights, match=r"rollout-1 does not hold weights 7: .* by 2\.6; allowed"):
        check_probe("rollout-1", report(2.6), 7, 1e-3)
    with pytest.raises(StaleWeights, match="rollout-0"):
        check_probe("rollout-0", report(float("nan")), 7, 1e-3)


def test_a_worker_that_reports_another_version_is_rejected():
    with pytest.raises(StaleWeights, match="rollout-0 reports weights 6 instead of 7"):
        check_probe("rollout-0", report(0.0, version=6), 7, 1e-3)


def test_reports_of_dead_incarnations_are_ignored():
    """Neither their metrics address nor their weight version is used."""
    replicas = ReplicaSet("rollout", 3)
    pool = RolloutPool.__new__(RolloutPool)
    pool._actor_pool = SimpleNamespace(replicas=replicas)
    pool._reports = {}
    assert (pool.metrics, pool.oldest_version) == ({}, None)
    for place, version in enumerate((5, 4, 6)):
        name = f"rollout-{place}"
        replicas.mark_starting(name, 0.0)
        replicas.mark_started(name, 0.0)
        told = SyncReport(version=version, logprob_diff=0.0, seconds=0.1, metrics=f":{4000 + place}" if place else None)
        pool._reports[name, 1] = told
    assert pool.metrics == {"rollout-1": ":4001", "rollout-2": ":4002"}
    assert pool.oldest_version == 4
    replicas.mark_dead("rollout-1", "signal 9", 1.0)
    replicas.mark_starting("rollout-1", 1.0)
    replicas.mark_started("rollout-1", 2.0)  # up, and without weights yet
    assert pool.metrics == {"rollout-2": ":4002"}
    assert pool.oldest_version == 5


def test_a_worker_without_access_to_the_weights_names_their_path(tmp_path):
    worker = RolloutWorker.__new__(RolloutWorker)
    engine = SimpleNamespace(exit_reason=lambda error: None, load_weights=lambda files, *_, **__: list(files))
    worker._name, worker._engine = "rollout-3", engine
    there = tmp_path / "000007.safetensors"
    with pytest.raises(
        InputError, match=rf"rollout-3, on the node .*{there}.*weight_sync\.backend=filesystem.*run\.directory"
    ):
        worker.update(
            WeightUpdate(version=7, size=1, whole=True, path=there), None, WeightCheck(sequences=[], logps=[])
        )


def test_a_worker_with_partial_weights_is_unusable():
    def load_weights(*_: object, **__: object) -> None:
        raise PartialWeightUpdate("weights 7 were loaded partially: a piece is lost")

    worker = RolloutWorker.__new__(RolloutWorker)
    worker._name = "rollout-3"
    worker._engine = SimpleNamespace(exit_reason=lambda error: None, load_weights=load_weights)
    with pytest.raises(ActorUnusable, match="rollout-3: weights 7 were loaded partially"):
        worker.update(WeightUpdate(version=7, size=1, whole=True), None, WeightCheck(sequences=[], logps=[]))
