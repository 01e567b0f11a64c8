"""A pool of real Ray actors whose members die, fail, hang and leave: work is done once, and by somebody who may."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.actor_pool import ActorPool, ActorPoolConfig, WeightUpdateRequest
from cluster.monitored_actor import MonitoredActor
from cluster.placement import Placement
from cluster.replica_state import PoolFailed, ReplicaState
from cluster.waiting import ActorFailed, ActorUnusable, CallTimeout, SyncInterrupted

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("cluster"),
    pytest.mark.usefixtures("cluster"),
]


class Worker(MonitoredActor):
    """Does what an item says: a number is answered with its square; "die 2" dies of it, in the first two processes."""

    def __init__(self, name: str, notes: Path) -> None:
        super().__init__()
        self.name, self.notes, self.version = name, notes, 0

    def up(self) -> int:
        return os.getpid()

    def renew(self, version: int) -> int:
        self.version = version
        # A worker that somebody has spoilt takes the weights, and computes something else.
        return -1 if (self.notes / f"spoilt-{self.name}").exists() else version

    def renew_unless(self, version: int, interruptions: int) -> int:
        """Is interrupted so often, all processes of this place together."""
        met = len(list(self.notes.glob(f"interrupted-{self.name}-*")))
        if met < interruptions:
            (self.notes / f"interrupted-{self.name}-{met}").touch()
            raise SyncInterrupted(f"{met} of 9 parts came")
        return self.renew(version)

    def do(self, items: list, version: int) -> list:
        assert self.version == version, "work was given to a member without what the others hold"
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
def crew(tmp_path):
    """Makes crews; keeps what they tell in `.told`."""
    made = []

    def make(
        members: int = 2, *, cpus: float = 0.5, beat: float = 60.0, work: float = 60.0, start: float = 60.0
    ) -> ActorPool:
        told: list[tuple[str, dict]] = []

        def place_worker(name: str, place: Placement) -> object:
            return ray.remote(Worker).options(**place.options()).remote(name, tmp_path)

        one = ActorPool(
            ActorPoolConfig(
                role="worker", members=members, start_seconds=start, renew_seconds=30.0, work_seconds=work,
                beat_seconds=beat, renewed=True, needs={"CPU": cpus},
            ),
            make=place_worker,
            warm=lambda worker: worker.up.remote(),
            tell=lambda kind, **fields: told.append((kind, fields)),
        )  # fmt: skip
        one.told = told
        one.notes = tmp_path
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


def check(name: str, answer: int) -> None:
    if answer < 0:
        raise RuntimeError(f"{name} computes something else")


def renewed(one: ActorPool, version: int = 1) -> ActorPool:
    one.renew(
        WeightUpdateRequest(call=lambda worker: worker.renew.remote(version), check=check, doing="taking weights")
    )
    return one


def work(one: ActorPool, items: list, version: int = 1) -> list:
    return one.work(
        [f"item {item}" for item in items], lambda w, share: w.do.remote([items[i] for i in share], version), "working"
    )


def kinds(one: ActorPool) -> list[str]:
    return [kind for kind, _ in one.told]


def until_joined(one: ActorPool, times: int = 1) -> None:
    """Members come back while there is work."""
    deadline = time.monotonic() + 60
    while kinds(one).count("joined") < times:
        assert time.monotonic() < deadline, one.told
        work(one, [1])


def test_work_of_a_member_that_dies_is_done_by_another_and_its_successor_is_renewed_first(crew):
    one = crew()
    pids = one.start()
    renewed(one)
    assert work(one, [1, 2, "die 1", 4, 5]) == [1, 4, "die 1", 16, 25]
    until_joined(one)
    [(_, lost)] = [event for event in one.told if event[0] == "lost"]
    assert "killed by signal 9" in lost["reason"] or "exit status not known" in lost["reason"]
    assert str(pids[lost["member"]]) in lost["reason"]
    assert lost["items"] >= 1
    assert work(one, list(range(8))) == [n * n for n in range(8)]
    assert one.names == ["worker-0", "worker-1"]


def test_a_member_that_cannot_go_on_is_replaced_and_one_that_failed_once_is_not(crew):
    one = crew()
    one.start()
    renewed(one)
    assert work(one, ["break 1", 3]) == ["break 1", 9]
    until_joined(one)
    assert [fields["reason"] for kind, fields in one.told if kind == "lost"] == [
        "failed while working: MemberBroken('its engine is gone')"
    ]
    before = kinds(one).count("lost")
    assert work(one, ["fail 1", 3]) == ["fail 1", 9]
    assert kinds(one).count("lost") == before
    assert kinds(one).count("work failed") == 1


def test_an_item_that_fails_or_kills_again_and_again_ends_the_work_and_nothing_else(crew):
    one = crew()
    one.start()
    renewed(one)
    with pytest.raises(ActorFailed, match=r"failed while working, 2 times with each of .*item fail 9.*: ValueError"):
        work(one, [1, "fail 9"])
    with pytest.raises(CallTimeout, match="nobody finished working: lent 4 times each, to no end: item die 9"):
        work(one, ["die 9"])
    assert work(one, [1, 2, 3]) == [1, 4, 9]


def test_a_member_that_is_stopped_is_noticed_by_its_silence(crew):
    one = crew(beat=6.0)
    one.start()
    renewed(one)
    begun = time.monotonic()
    assert work(one, ["hang 1", 2, 3]) == ["hang 1", 4, 9]
    assert time.monotonic() - begun < 45.0  # and not after the 60 s that it has for its work
    [(_, lost)] = [event for event in one.told if event[0] == "lost"]
    assert lost["reason"] == "gave no sign of life for 6 s"


def test_a_member_past_its_deadline_loses_its_work_though_it_lives(crew):
    one = crew(work=2.0)
    one.start()
    renewed(one)
    assert work(one, ["hang 1", 2, 3]) == ["hang 1", 4, 9]
    assert [f["reason"] for kind, f in one.told if kind == "lost"] == ["gave no answer in time while working"]


def test_a_successor_that_computes_something_else_gets_no_work(crew):
    one = crew()
    one.start()
    renewed(one)
    for name in one.names:
        (one.notes / f"spoilt-{name}").touch()
    assert work(one, ["die 1", 2]) == ["die 1", 4]
    deadline = time.monotonic() + 60
    while not any("computes something else" in f.get("reason", "") for _, f in one.told):
        assert time.monotonic() < deadline, one.told
        work(one, [1])
    assert "joined" not in kinds(one)
    with pytest.raises(RuntimeError, match="computes something else"):
        renewed(one, 2)  # nobody passes: it is not the member


def test_what_a_member_cannot_take_at_the_first_start_ends_it(crew):
    one = crew(1)
    one.start()
    renewal = WeightUpdateRequest(
        call=lambda worker: worker.do.remote(["no 1"], 0), check=check, doing="taking weights"
    )
    with pytest.raises(ActorFailed, match=r"worker-0 failed while taking weights: ValueError.*no good"):
        one.renew(renewal, strict=True)
    assert "lost" not in kinds(one)


class Giver:
    """Gives a version in rounds; keeps whom it gave it to."""

    def __init__(self, version: int, interruptions: int = 0) -> None:
        """interruptions: how many of each member there are to have been."""
        self.version, self.interruptions = version, interruptions
        self.rounds: list[list[str]] = []
        self.busy = False

    def free(self) -> bool:
        return not self.busy

    def begin(self, names):
        assert not self.busy
        self.rounds.append(list(names))
        return lambda worker: worker.renew_unless.remote(self.version, self.interruptions)


def given(one: ActorPool, giver: Giver, **more) -> ActorPool:
    one.renew(WeightUpdateRequest(rounds=giver, check=check, doing="taking weights"), **more)
    return one


def test_what_is_given_in_rounds_goes_to_all_together_and_later_to_who_comes_when_the_giver_is_free(crew):
    one = crew(3)
    one.start()
    giver = Giver(1)
    given(one, giver, strict=True)
    assert giver.rounds == [["worker-0", "worker-1", "worker-2"]]
    giver.busy = True
    assert work(one, ["die 1", 2, 3, 4]) == ["die 1", 4, 9, 16]
    [dead] = [fields["member"] for kind, fields in one.told if kind == "lost"]
    deadline = time.monotonic() + 60
    while one.fleet.members[dead].life != ReplicaState.STALE:
        assert time.monotonic() < deadline, one.told
        work(one, [1])
    work(one, [1])
    assert dead not in one.names, "there is nobody to give it"
    giver.busy = False
    until_joined(one)
    assert giver.rounds[1:] == [[dead]]
    given(one, later := Giver(2))
    assert later.rounds == [["worker-0", "worker-1", "worker-2"]]
    assert work(one, [1, 2, 3, 4], version=2) == [1, 4, 9, 16]


def test_a_member_that_is_interrupted_goes_on_in_the_next_round_and_not_for_ever(crew):
    one = crew(1)
    pids = one.start()
    given(one, twice := Giver(1, 2), strict=True)
    assert twice.rounds == [["worker-0"]] * 3
    assert kinds(one) == ["interrupted"] * 2
    assert one.told[0][1] == {"member": "worker-0", "doing": "taking weights", "reason": "0 of 9 parts came"}
    assert work(one, [2]) == [4]
    given(one, thrice := Giver(2, 5))  # of which two are past
    assert thrice.rounds == [["worker-0"]] * 4
    [(_, lost)] = [event for event in one.told if event[0] == "lost"]
    assert lost["reason"] == "failed while taking weights: Interrupted('4 of 9 parts came')"
    assert work(one, [2], version=2) == [4]
    assert one._identities["worker-0"].pid != pids["worker-0"]


def test_a_pool_grows_and_shrinks_while_it_works(crew):
    one = crew(1)
    one.start()
    renewed(one)
    one.resize(3)
    until_joined(one, 2)
    assert one.names == ["worker-0", "worker-1", "worker-2"]
    pids = set(ray.get([actor.up.remote() for actor in one._actors.values()]))
    one.resize(1)
    assert work(one, list(range(6))) == [n * n for n in range(6)]
    work(one, [1])
    assert one.names == ["worker-0"]
    assert kinds(one).count("left") == 2
    assert kinds(one).count("lost") == 0
    deadline = time.monotonic() + 20
    while len([pid for pid in pids if _lives(pid)]) > 1:
        assert time.monotonic() < deadline, "members that left live on"
        time.sleep(0.1)
    assert [fields for kind, fields in one.told if kind == "resized"] == [
        {"pool": "worker", "before": 1, "after": 3}, {"pool": "worker", "before": 3, "after": 1},
    ]  # fmt: skip


def test_a_member_without_a_place_is_said_to_have_none_and_is_waited_for(crew):
    with pytest.raises(ActorFailed, match=r"worker-\d has no place to start: it needs 99 CPU more than"):
        crew(1, cpus=99.0, start=2.0).start()
    one = crew(1, cpus=5.0)
    one.start()
    renewed(one)
    one._settings = replace(one._settings, start_seconds=2.0)  # less than a process takes on a machine that is busy
    one.resize(2)
    deadline = time.monotonic() + 60
    while "no room" not in kinds(one):
        assert time.monotonic() < deadline, one.told
        work(one, [1, 2])
    assert "lost" not in kinds(one)
    one.resize(1)
    work(one, [1])
    assert one.fleet.of(ReplicaState.STARTING) == []


def test_a_pool_whose_members_cannot_start_is_given_up_with_the_reason(crew):
    one = crew(1)
    one.start()
    renewed(one)
    one._make = lambda name, place: ray.remote(Unable).options(**place.options()).remote()
    with pytest.raises(PoolFailed, match=r"all of worker-0 died 3 times while starting: .*no such checkpoint"):
        work(one, ["die 1"])


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
