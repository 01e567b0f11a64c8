"""The state machine of a pool's replicas, without a cluster and without a clock."""

import pytest

from cluster.replica_state import MAX_BACKOFF_S, PoolFailed, ReplicaSet, ReplicaState


def ready(replicas: ReplicaSet, *names: str, now: float = 0.0) -> None:
    for name in names:
        replicas.mark_starting(name, now)
        replicas.mark_started(name, now)
        replicas.mark_ready(name, now)


def test_a_replica_is_ready_only_with_the_current_weights():
    replicas = ReplicaSet("rollout", 2)
    assert replicas.due(0.0) == ["rollout-0", "rollout-1"]
    for name in replicas.due(0.0):
        replicas.mark_starting(name, 0.0)
    assert replicas.due(0.0) == []
    replicas.mark_started("rollout-0", 1.0)
    assert replicas.names_in(ReplicaState.READY) == []
    with pytest.raises(ValueError, match="rollout-1 cannot become ready while it is starting"):
        replicas.mark_ready("rollout-1", 1.0)
    replicas.mark_ready("rollout-0", 2.0)
    assert replicas.names_in(ReplicaState.READY) == ["rollout-0"]


def test_a_dead_replica_is_replaced_under_its_name_and_is_stale_first():
    replicas = ReplicaSet("rollout", 2)
    ready(replicas, "rollout-0", "rollout-1")
    replicas.mark_dead("rollout-0", "signal 9", 5.0)
    assert replicas.by_name["rollout-0"].reason == "signal 9"
    assert replicas.due(5.0) == ["rollout-0"], "the first replacement starts at once"
    assert replicas.restarts == 0
    assert replicas.mark_starting("rollout-0", 5.0).incarnation == 2
    assert replicas.restarts == 1
    replicas.mark_started("rollout-0", 6.0)
    assert replicas.names_in(ReplicaState.READY) == ["rollout-1"]
    assert replicas.names_in(ReplicaState.STALE) == ["rollout-0"]


def test_a_newer_update_makes_ready_replicas_stale():
    replicas = ReplicaSet("rollout", 3)
    ready(replicas, "rollout-0", "rollout-1")
    replicas.mark_starting("rollout-2", 0.0)
    assert replicas.mark_stale(1.0) == ["rollout-0", "rollout-1"]
    assert replicas.names_in(ReplicaState.READY) == []
    assert replicas.names_in(ReplicaState.STARTING) == ["rollout-2"]


def test_repeated_deaths_while_starting_back_off_and_fail_the_pool_when_no_replica_is_alive():
    replicas = ReplicaSet("reward", 2, max_failures=3, backoff_s=1.0)
    ready(replicas, "reward-1")
    for dies, next_try in ((0.0, 1.0), (1.0, 3.0)):
        replicas.mark_starting("reward-0", dies)
        replicas.mark_dead("reward-0", "no such file", dies)
        assert replicas.due(next_try - 0.01) == []
        assert replicas.due(next_try) == ["reward-0"]
    for now in range(3, 20):
        replicas.mark_starting("reward-0", float(now))
        replicas.mark_dead("reward-0", "no such file", float(now))
    # The other one is alive, so the pool keeps retrying.
    assert replicas.due(19.0 + MAX_BACKOFF_S - 0.01) == []
    assert replicas.due(19.0 + MAX_BACKOFF_S) == ["reward-0"]
    replicas.mark_dead("reward-1", "signal 9", 30.0)
    assert replicas.due(30.0) == ["reward-1"]
    for now in (30.0, 100.0, 200.0):
        replicas.mark_starting("reward-1", now)
        assert "reward-1" not in replicas.due(now)
        replicas.mark_dead("reward-1", "no such file", now)
    with pytest.raises(PoolFailed, match="died 3 times while starting: no such file"):
        replicas.due(1e9)


def test_an_unchanged_heartbeat_times_out():
    replicas = ReplicaSet("rollout", 2)
    ready(replicas, "rollout-0", "rollout-1")
    replicas.mark_starting("rollout-2", 0.0)
    for now in (0.0, 5.0, 10.0):
        replicas.record_heartbeat("rollout-0", b"1", now)
        replicas.record_heartbeat("rollout-1", str(now), now)
        assert replicas.timed_out(now, 10.0) == (["rollout-0"] if now == 10.0 else [])
    replicas.reset_heartbeats(11.0)
    assert replicas.timed_out(20.0, 10.0) == []
    assert replicas.timed_out(21.0, 10.0) == ["rollout-0", "rollout-1"]


def test_a_pending_start_can_be_cancelled():
    replicas = ReplicaSet("rollout", 2)
    ready(replicas, "rollout-0")
    replicas.mark_starting("rollout-1", 0.0)
    replicas.cancel_start("rollout-1")
    assert replicas.due(0.0) == ["rollout-1"], "at once: not a failure"
    with pytest.raises(ValueError, match="cannot become dead while it is ready"):
        replicas.cancel_start("rollout-0")


def test_a_pool_shrinks_by_draining_and_grows_again():
    replicas = ReplicaSet("rollout", 3)
    ready(replicas, "rollout-0", "rollout-1", "rollout-2")
    replicas.resize(1)
    assert replicas.surplus() == ["rollout-1", "rollout-2"]
    for name in replicas.surplus():
        replicas.mark_draining(name, 1.0)
    assert (replicas.surplus(), replicas.names_in(ReplicaState.READY)) == ([], ["rollout-0"])
    replicas.remove("rollout-1")
    replicas.mark_dead("rollout-2", "signal 9", 2.0)
    assert list(replicas.by_name) == ["rollout-0"], "a replica that dies while draining is not replaced"
    replicas.resize(2)
    assert replicas.due(3.0) == ["rollout-1"]
    assert replicas.mark_starting("rollout-1", 3.0).incarnation == 2
    with pytest.raises(ValueError, match="use at least 1"):
        replicas.resize(0)
