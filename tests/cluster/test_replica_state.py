"""The life of a pool's members, without a cluster and without a clock."""

import pytest

from cluster.replica_state import LONGEST_PAUSE, PoolFailed, ReplicaSet, ReplicaState


def ready(fleet: ReplicaSet, *names: str, now: float = 0.0) -> None:
    for name in names:
        fleet.starting(name, now)
        fleet.started(name, now)
        fleet.renewed(name, now)


def test_nobody_is_ready_before_it_holds_what_the_others_hold():
    fleet = ReplicaSet("rollout", 2)
    assert fleet.due(0.0) == ["rollout-0", "rollout-1"]
    for name in fleet.due(0.0):
        fleet.starting(name, 0.0)
    assert fleet.due(0.0) == []
    fleet.started("rollout-0", 1.0)
    assert fleet.of(ReplicaState.READY) == []
    with pytest.raises(ValueError, match="rollout-1 cannot become ready while it is starting"):
        fleet.renewed("rollout-1", 1.0)
    fleet.renewed("rollout-0", 2.0)
    assert fleet.of(ReplicaState.READY) == ["rollout-0"]


def test_who_dies_is_succeeded_in_its_place_and_passes_through_stale_again():
    fleet = ReplicaSet("rollout", 2)
    ready(fleet, "rollout-0", "rollout-1")
    fleet.died("rollout-0", "signal 9", 5.0)
    assert fleet.members["rollout-0"].reason == "signal 9"
    assert fleet.due(5.0) == ["rollout-0"], "the first successor comes at once"
    assert fleet.restarts == 0
    assert fleet.starting("rollout-0", 5.0).incarnation == 2
    assert fleet.restarts == 1
    fleet.started("rollout-0", 6.0)
    assert fleet.of(ReplicaState.READY) == ["rollout-1"]
    assert fleet.of(ReplicaState.STALE) == ["rollout-0"]


def test_something_new_makes_the_ready_ones_stale():
    fleet = ReplicaSet("rollout", 3)
    ready(fleet, "rollout-0", "rollout-1")
    fleet.starting("rollout-2", 0.0)
    assert fleet.outdated(1.0) == ["rollout-0", "rollout-1"]
    assert fleet.of(ReplicaState.READY) == []
    assert fleet.of(ReplicaState.STARTING) == ["rollout-2"]


def test_a_place_whose_members_die_while_starting_waits_longer_and_is_given_up_when_nobody_lives():
    fleet = ReplicaSet("reward", 2, tries=3, pause=1.0)
    ready(fleet, "reward-1")
    for dies, next_try in ((0.0, 1.0), (1.0, 3.0)):
        fleet.starting("reward-0", dies)
        fleet.died("reward-0", "no such file", dies)
        assert fleet.due(next_try - 0.01) == []
        assert fleet.due(next_try) == ["reward-0"]
    for now in range(3, 20):
        fleet.starting("reward-0", float(now))
        fleet.died("reward-0", "no such file", float(now))
    # The other one lives, and whatever keeps this one from starting may pass.
    assert fleet.due(19.0 + LONGEST_PAUSE - 0.01) == []
    assert fleet.due(19.0 + LONGEST_PAUSE) == ["reward-0"]
    fleet.died("reward-1", "signal 9", 30.0)
    assert fleet.due(30.0) == ["reward-1"]
    for now in (30.0, 100.0, 200.0):
        fleet.starting("reward-1", now)
        assert "reward-1" not in fleet.due(now)
        fleet.died("reward-1", "no such file", now)
    with pytest.raises(PoolFailed, match="died 3 times while starting: no such file"):
        fleet.due(1e9)


def test_silence_is_a_sign_that_does_not_change():
    fleet = ReplicaSet("rollout", 2)
    ready(fleet, "rollout-0", "rollout-1")
    fleet.starting("rollout-2", 0.0)
    for now in (0.0, 5.0, 10.0):
        fleet.beat("rollout-0", b"1", now)
        fleet.beat("rollout-1", str(now), now)
        assert fleet.silent(now, 10.0) == (["rollout-0"] if now == 10.0 else [])
    fleet.deaf(11.0)
    assert fleet.silent(20.0, 10.0) == []
    assert fleet.silent(21.0, 10.0) == ["rollout-0", "rollout-1"]


def test_who_waits_for_a_place_can_be_called_off():
    fleet = ReplicaSet("rollout", 2)
    ready(fleet, "rollout-0")
    fleet.starting("rollout-1", 0.0)
    fleet.withdrawn("rollout-1")
    assert fleet.due(0.0) == ["rollout-1"], "at once: it was no failure"
    with pytest.raises(ValueError, match="cannot become dead while it is ready"):
        fleet.withdrawn("rollout-0")


def test_a_pool_shrinks_by_draining_and_grows_again():
    fleet = ReplicaSet("rollout", 3)
    ready(fleet, "rollout-0", "rollout-1", "rollout-2")
    fleet.resize(1)
    assert fleet.leavers() == ["rollout-1", "rollout-2"]
    for name in fleet.leavers():
        fleet.retire(name, 1.0)
    assert (fleet.leavers(), fleet.of(ReplicaState.READY)) == ([], ["rollout-0"])
    fleet.drained("rollout-1")
    fleet.died("rollout-2", "signal 9", 2.0)
    assert list(fleet.members) == ["rollout-0"], "who dies on its way out is not missed"
    fleet.resize(2)
    assert fleet.due(3.0) == ["rollout-1"]
    assert fleet.starting("rollout-1", 3.0).incarnation == 2
    with pytest.raises(ValueError, match="at least one member"):
        fleet.resize(0)
