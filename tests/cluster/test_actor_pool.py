"""A pool of real Ray actors that die, fail, hang and are removed: every task is done once, by a ready actor."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.actor_pool import ActorPool
from cluster.monitored_actor import MonitoredActor
from cluster.placement import Placement
from cluster.pool_calls import ActorPoolConfig, WeightUpdateRequest
from cluster.replica_state import PoolFailed, ReplicaState
from cluster.waiting import ActorFailed, ActorUnusable, CallTimeout, SyncInterrupted

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("cluster"),
    pytest.mark.usefixtures("cluster"),
]


class Worker(MonitoredActor):
    """Runs items: squares a number; "die 2" kills the first two processes that get it."""

    def __init__(self, name: str, notes: Path) -> None:
        super().__init__()
        self.name, self.notes, self.version = name, notes, 0

    def up(self) -> int:
        return os.getpid()

    def renew(self, version: int) -> int:
        self.version = version
        # A spoilt worker takes the weights but computes something else.
        return -1 if (self.notes / f"spoilt-{self.name}").exists() else version

    def renew_unless(self, version: int, interruptions: int) -> int:
        """Is interrupted so often, counted over all incarnations."""
        met = len(list(self.notes.glob(f"interrupted-{self.name}-*")))
        if met < interruptions:
            (self.notes / f"interrupted-{self.name}-{met}").touch()
            raise SyncInterrupted(f"{met} of 9 parts came")
        return self.renew(version)

    def do(self, items: list, version: int) -> list:
        assert self.version == version, "an actor without the current weights got tasks"
        return [self._one(item) for item in items]

    def _one(self, item):
        if not isinstance(item, str):
            time.sleep(0.05)
            return item * item
        what, times = item.split()
        met = self.notes / f"{what}-{times}-{time.monotonic_ns()}"
        before = len(list(self.notes.glob(f"{what}-{times}-*")))
        if before >= int(times):
            return item
        met.touch()
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "break":
            raise ActorUnusable("its engine is gone")
        raise ValueError("this item is no good")


class Unable(MonitoredActor):
    """Cannot start."""

    def __init__(self) -> None:
        raise OSError("no such checkpoint")

    def up(self) -> int:
        return 0


@pytest.fixture
def make_pool(tmp_path):
    """Makes pools that keep their events in `.events`."""
    made = []

    def make(
        num_replicas: int = 2, *, cpus: float = 0.5, heartbeat: float = 60.0, work: float = 60.0, start: float = 60.0
    ) -> ActorPool:
        events: list[tuple[str, dict]] = []

        def place_worker(name: str, place: Placement) -> object:
            return ray.remote(Worker).options(**place.options()).remote(name, tmp_path)

        pool = ActorPool(
            ActorPoolConfig(
                role="worker", num_replicas=num_replicas, start_timeout_s=start, update_timeout_s=30.0,
                task_timeout_s=work, heartbeat_timeout_s=heartbeat, needs_update=True, resources={"CPU": cpus},
            ),
            create=place_worker,
            warm_up=lambda worker: worker.up.remote(),
            emit_event=lambda kind, **fields: events.append((kind, fields)),
        )  # fmt: skip
        pool.events = events
        pool.notes = tmp_path
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.stop()


def check(name: str, answer: int) -> None:
    if answer < 0:
        raise RuntimeError(f"{name} computes something else")


def updated(pool: ActorPool, version: int = 1) -> ActorPool:
    pool.update_all(
        WeightUpdateRequest(call=lambda worker: worker.renew.remote(version), check=check, doing="taking weights")
    )
    return pool


def run(pool: ActorPool, items: list, version: int = 1) -> list:
    return pool.run(
        [f"item {item}" for item in items], lambda w, share: w.do.remote([items[i] for i in share], version), "working"
    )


def kinds(pool: ActorPool) -> list[str]:
    return [kind for kind, _ in pool.events]


def until_ready(pool: ActorPool, times: int = 1) -> None:
    """Replacements start while the pool polls."""
    deadline = time.monotonic() + 60
    while kinds(pool).count("actor_ready") < times:
        assert time.monotonic() < deadline, pool.events
        run(pool, [1])


def test_tasks_of_a_dead_actor_go_to_another_and_its_replacement_is_updated_first(make_pool):
    pool = make_pool()
    pids = pool.start()
    updated(pool)
    assert run(pool, [1, 2, "die 1", 4, 5]) == [1, 4, "die 1", 16, 25]
    until_ready(pool)
    [(_, lost)] = [event for event in pool.events if event[0] == "actor_died"]
    assert "killed by signal 9" in lost["reason"] or "exit status not known" in lost["reason"]
    assert str(pids[lost["member"]]) in lost["reason"]
    assert lost["items"] >= 1
    assert run(pool, list(range(8))) == [n * n for n in range(8)]
    assert pool.names == ["worker-0", "worker-1"]


def test_an_unusable_actor_is_replaced_and_one_whose_task_failed_once_is_not(make_pool):
    pool = make_pool()
    pool.start()
    updated(pool)
    assert run(pool, ["break 1", 3]) == ["break 1", 9]
    until_ready(pool)
    assert [fields["reason"] for kind, fields in pool.events if kind == "actor_died"] == [
        "failed while working: ActorUnusable('its engine is gone')"
    ]
    before = kinds(pool).count("actor_died")
    assert run(pool, ["fail 1", 3]) == ["fail 1", 9]
    assert kinds(pool).count("actor_died") == before
    assert kinds(pool).count("task_failed") == 1


def test_a_task_that_fails_or_kills_repeatedly_ends_the_run_and_not_the_pool(make_pool):
    pool = make_pool()
    pool.start()
    updated(pool)
    with pytest.raises(ActorFailed, match=r"failed while working, 2 times with each of .*item fail 9.*: ValueError"):
        run(pool, [1, "fail 9"])
    with pytest.raises(CallTimeout, match="task failed on 4 actors while working: item die 9"):
        run(pool, ["die 9"])
    assert run(pool, [1, 2, 3]) == [1, 4, 9]


def test_a_stopped_actor_is_found_by_its_missing_heartbeat(make_pool):
    pool = make_pool(heartbeat=6.0)
    pool.start()
    updated(pool)
    begun = time.monotonic()
    assert run(pool, ["hang 1", 2, 3]) == ["hang 1", 4, 9]
    assert time.monotonic() - begun < 45.0  # and not after the 60 s of its task deadline
    [(_, lost)] = [event for event in pool.events if event[0] == "actor_died"]
    assert lost["reason"] == "no heartbeat for 6 s"


def test_an_actor_past_its_deadline_loses_its_tasks_while_alive(make_pool):
    pool = make_pool(work=2.0)
    pool.start()
    updated(pool)
    assert run(pool, ["hang 1", 2, 3]) == ["hang 1", 4, 9]
    assert [f["reason"] for kind, f in pool.events if kind == "actor_died"] == ["missed its deadline while working"]


def test_a_replacement_that_computes_something_else_gets_no_tasks(make_pool):
    pool = make_pool()
    pool.start()
    updated(pool)
    for name in pool.names:
        (pool.notes / f"spoilt-{name}").touch()
    assert run(pool, ["die 1", 2]) == ["die 1", 4]
    deadline = time.monotonic() + 60
    while not any("computes something else" in f.get("reason", "") for _, f in pool.events):
        assert time.monotonic() < deadline, pool.events
        run(pool, [1])
    assert "actor_ready" not in kinds(pool)
    with pytest.raises(RuntimeError, match="computes something else"):
        updated(pool, 2)  # no actor passes the check, so the actor is not the cause


def test_a_failed_update_at_the_first_start_raises(make_pool):
    pool = make_pool(1)
    pool.start()
    renewal = WeightUpdateRequest(
        call=lambda worker: worker.do.remote(["no 1"], 0), check=check, doing="taking weights"
    )
    with pytest.raises(ActorFailed, match=r"worker-0 failed while taking weights: ValueError.*no good"):
        pool.update_all(renewal, strict=True)
    assert "actor_died" not in kinds(pool)


class Sender:
    """Broadcasts a version in rounds; records the receivers."""

    def __init__(self, version: int, interruptions: int = 0) -> None:
        """interruptions: number of interruptions per actor."""
        self.version, self.interruptions = version, interruptions
        self.rounds: list[list[str]] = []
        self.busy = False

    def free(self) -> bool:
        return not self.busy

    def begin(self, names):
        assert not self.busy
        self.rounds.append(list(names))
        return lambda worker: worker.renew_unless.remote(self.version, self.interruptions)


def broadcast(pool: ActorPool, sender: Sender, **more) -> ActorPool:
    pool.update_all(WeightUpdateRequest(rounds=sender, check=check, doing="taking weights"), **more)
    return pool


def test_a_broadcast_reaches_all_together_and_a_later_actor_once_the_sender_is_free(make_pool):
    pool = make_pool(3)
    pool.start()
    sender = Sender(1)
    broadcast(pool, sender, strict=True)
    assert sender.rounds == [["worker-0", "worker-1", "worker-2"]]
    sender.busy = True
    assert run(pool, ["die 1", 2, 3, 4]) == ["die 1", 4, 9, 16]
    [dead] = [fields["member"] for kind, fields in pool.events if kind == "actor_died"]
    deadline = time.monotonic() + 60
    while pool.replicas.by_name[dead].state != ReplicaState.STALE:
        assert time.monotonic() < deadline, pool.events
        run(pool, [1])
    run(pool, [1])
    assert dead not in pool.names, "no sender is free"
    sender.busy = False
    until_ready(pool)
    assert sender.rounds[1:] == [[dead]]
    broadcast(pool, later := Sender(2))
    assert later.rounds == [["worker-0", "worker-1", "worker-2"]]
    assert run(pool, [1, 2, 3, 4], version=2) == [1, 4, 9, 16]


def test_an_interrupted_actor_continues_in_the_next_round_but_not_forever(make_pool):
    pool = make_pool(1)
    pids = pool.start()
    broadcast(pool, twice := Sender(1, 2), strict=True)
    assert twice.rounds == [["worker-0"]] * 3
    assert kinds(pool) == ["sync_interrupted"] * 2
    assert pool.events[0][1] == {"member": "worker-0", "doing": "taking weights", "reason": "0 of 9 parts came"}
    assert run(pool, [2]) == [4]
    broadcast(pool, thrice := Sender(2, 5))  # of which two are past
    assert thrice.rounds == [["worker-0"]] * 4
    [(_, lost)] = [event for event in pool.events if event[0] == "actor_died"]
    assert lost["reason"] == "failed while taking weights: SyncInterrupted('4 of 9 parts came')"
    assert run(pool, [2], version=2) == [4]
    assert pool._identities["worker-0"].pid != pids["worker-0"]


def test_a_pool_grows_and_shrinks_while_it_works(make_pool):
    pool = make_pool(1)
    pool.start()
    updated(pool)
    pool.resize(3)
    until_ready(pool, 2)
    assert pool.names == ["worker-0", "worker-1", "worker-2"]
    pids = set(ray.get([actor.up.remote() for actor in pool._actors.values()]))
    pool.resize(1)
    assert run(pool, list(range(6))) == [n * n for n in range(6)]
    run(pool, [1])
    assert pool.names == ["worker-0"]
    assert kinds(pool).count("actor_removed") == 2
    assert kinds(pool).count("actor_died") == 0
    deadline = time.monotonic() + 20
    while len([pid for pid in pids if _lives(pid)]) > 1:
        assert time.monotonic() < deadline, "removed actors are still alive"
        time.sleep(0.1)
    assert [fields for kind, fields in pool.events if kind == "pool_resized"] == [
        {"pool": "worker", "before": 1, "after": 3}, {"pool": "worker", "before": 3, "after": 1},
    ]  # fmt: skip


def test_a_start_without_resources_is_reported_and_waited_for(make_pool):
    with pytest.raises(ActorFailed, match=r"worker-\d cannot start: it needs 99 CPU more than"):
        make_pool(1, cpus=99.0, start=2.0).start()
    pool = make_pool(1, cpus=5.0)
    pool.start()
    updated(pool)
    pool._config = replace(pool._config, start_timeout_s=2.0)  # less than a process takes on a machine that is busy
    pool.resize(2)
    deadline = time.monotonic() + 60
    while "waiting_for_resources" not in kinds(pool):
        assert time.monotonic() < deadline, pool.events
        run(pool, [1, 2])
    assert "actor_died" not in kinds(pool)
    pool.resize(1)
    run(pool, [1])
    assert pool.replicas.names_in(ReplicaState.STARTING) == []


def test_a_pool_whose_actors_cannot_start_fails_with_the_reason(make_pool):
    pool = make_pool(1)
    pool.start()
    updated(pool)
    pool._create = lambda name, place: ray.remote(Unable).options(**place.options()).remote()
    with pytest.raises(PoolFailed, match=r"all of worker-0 died 3 times while starting: .*no such checkpoint"):
        run(pool, ["die 1"])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
