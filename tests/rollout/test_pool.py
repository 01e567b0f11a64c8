"""A worker holds the weights that it was given, and can get at them; what is known of those that do."""

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
    return SyncReport(version=version, probe_gap=gap, seconds=0.1)


def test_a_worker_with_other_weights_is_named_with_the_number():
    check_probe("rollout-0", report(9e-4), 7, 1e-3)
    with pytest.raises(StaleWeights, match=r"rollout-1 does not hold weights 7: .* by 2\.6 on the probe"):
        check_probe("rollout-1", report(2.6), 7, 1e-3)
    with pytest.raises(StaleWeights, match="rollout-0"):
        check_probe("rollout-0", report(float("nan")), 7, 1e-3)


def test_a_worker_that_names_another_version_is_refused_whatever_it_computes():
    with pytest.raises(StaleWeights, match="rollout-0 says that it holds weights 6; it was given 7"):
        check_probe("rollout-0", report(0.0, version=6), 7, 1e-3)


def test_what_workers_say_is_of_those_that_are_up_and_not_of_the_dead_before_them():
    """Prometheus is not sent to the port of a process that is gone, nor told the version that it held."""
    fleet = ReplicaSet("rollout", 3)
    pool = RolloutPool.__new__(RolloutPool)
    pool._crew = SimpleNamespace(fleet=fleet)
    pool._reports = {}
    assert (pool.metrics, pool.oldest_version) == ({}, None)
    for place, version in enumerate((5, 4, 6)):
        name = f"rollout-{place}"
        fleet.starting(name, 0.0)
        fleet.started(name, 0.0)
        told = SyncReport(version=version, probe_gap=0.0, seconds=0.1, metrics=f":{4000 + place}" if place else None)
        pool._reports[name, 1] = told
    assert pool.metrics == {"rollout-1": ":4001", "rollout-2": ":4002"}
    assert pool.oldest_version == 4
    fleet.died("rollout-1", "signal 9", 1.0)
    fleet.starting("rollout-1", 1.0)
    fleet.started("rollout-1", 2.0)  # up, and without weights yet
    assert pool.metrics == {"rollout-2": ":4002"}
    assert pool.oldest_version == 5


def test_a_worker_that_does_not_see_the_weights_says_where_they_must_be(tmp_path):
    worker = RolloutWorker.__new__(RolloutWorker)
    engine = SimpleNamespace(ended=lambda error: None, load_weights=lambda files, *_, **__: list(files))
    worker._name, worker._engine = "rollout-3", engine
    there = tmp_path / "000007.safetensors"
    with pytest.raises(
        InputError, match=rf"rollout-3, on the node .*{there}.*weight_sync\.backend=filesystem.*run\.directory"
    ):
        worker.update(
            WeightUpdate(version=7, size=1, whole=True, path=there), None, WeightCheck(sequences=[], logps=[])
        )


def test_a_worker_with_half_of_its_weights_is_given_up():
    def load_weights(*_: object, **__: object) -> None:
        raise PartialWeightUpdate("weights 7 were not taken to the end: a piece is lost")

    worker = RolloutWorker.__new__(RolloutWorker)
    worker._name = "rollout-3"
    worker._engine = SimpleNamespace(ended=lambda error: None, load_weights=load_weights)
    with pytest.raises(ActorUnusable, match="rollout-3: weights 7 were not taken to the end"):
        worker.update(WeightUpdate(version=7, size=1, whole=True), None, WeightCheck(sequences=[], logps=[]))
