"""What a pool's members are asked, and how long each question may take. Plain data of `cluster.actor_pool`.

A pool's members as Ray actors: started, renewed, replaced, and lent work. `fleet` and `jobs` decide; this moves.

Everything happens in the caller's thread, in turns. `start`, `renew` and `work` take turns until they have what they
are for; `poll_once` takes one. With every turn everything comes further that was asked of a crew and of its company:
jobs, and members that are being replaced.

What every pool of members is to those who use it, whatever its members do.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.heartbeat import HeartbeatMonitor, delete_heartbeats
from cluster.monitored_actor import ActorIdentity, find_identity
from cluster.placement import Placement, missing_resources
from cluster.post_mortem import describe
from cluster.replica_state import PoolStatus, ReplicaSet, ReplicaState
from cluster.stall_watchdog import PendingCall
from cluster.task_queue import FAILED_TIMES, Scheduler, TaskFailed, TaskQueue
from cluster.waiting import ActorFailed, ActorUnusable, SyncInterrupted


@dataclass(frozen=True, kw_only=True)
class ActorPoolConfig:
    role: str
    """What names begin with: "rollout"."""
    members: int
    start_seconds: float
    """Deadline for a member to be up."""
    renew_seconds: float
    """Deadline for a member to take what is new."""
    work_seconds: float
    """Deadline for an answer about work."""
    beat_seconds: float
    """How long a member may give no sign of life."""
    renewed: bool
    """Whether members must be given something (weights) before they get work."""
    needs: Mapping[str, float]
    """Ray's resources of each member."""


class BroadcastRounds(Protocol):
    """Gives something new to several members at once, while they take it."""

    def free(self) -> bool:
        """Whether a round can begin: the giver does nothing else."""

    def begin(self, names: Sequence[str]) -> Callable[[Any], ray.ObjectRef]:
        """Has it begin, with these members. Returns what has one of them take part."""


@dataclass(frozen=True, kw_only=True)
class WeightUpdateRequest:
    """What every member must be given before it gets work."""

    check: Callable[[str, Any], None]
    """Raises when a member's answer will not do."""
    doing: str
    call: Callable[[Any], ray.ObjectRef] | None = None
    """Gives it to one member, at any time."""
    rounds: BroadcastRounds | None = None
    """Set instead where it can be had only while it is given."""


@dataclass(frozen=True, kw_only=True)
class PendingResult:
    """An answer that is waited for."""

    name: str
    incarnation: int
    doing: str
    since: float
    deadline: float
    job: TaskQueue | None = None
    """Set for work: an answer may come when that has been given up, and belongs to nothing any more."""
    items: tuple[int, ...] = ()
    """Of the job, that the question brought."""
    renewal: WeightUpdateRequest | None = None
    """Set when it is asked to take what is new."""
    starts: bool = False
    """Whether it is the first answer of a new member."""


TURN_SECONDS = 0.5
"""Longest wait of one turn: how late a deadline is noticed."""


FETCH_SECONDS = 120.0
"""For an answer that is there to come over: the node that has it may die meanwhile."""


INTERRUPTED_TIMES = 3
"""In a row, after which a member is taken to be at fault."""


def poll_once(crews: Sequence["ActorPool"], others: Iterable[ray.ObjectRef] = ()) -> None:
    """Asks what is to be asked, waits until somebody answers, `TURN_SECONDS` at most, and hears all answers. others:
    answers that the caller waits for as well."""
    for crew in crews:
        crew.act()
    pending = [*others, *(answer for crew in crews for answer in crew.pending)]
    if pending:
        ray.wait(pending, num_returns=1, timeout=TURN_SECONDS)
    else:
        time.sleep(TURN_SECONDS)  # everybody's next try is still to come
    for crew in crews:
        crew.hear()


class ActorPool:
    """Members by name. `start` first, `renew` before the first `work`."""

    def __init__(
        self,
        settings: ActorPoolConfig,
        make: Callable[[str, Placement], Any],
        warm: Callable[[Any], ray.ObjectRef],
        tell: Callable[..., None],
        company: "list[ActorPool] | None" = None,
    ) -> None:
        """make: a new actor for a name, in a place that is held for it alone. warm: its first call, whose answer says
        that it is up. tell: takes events, a kind and fields. company: crews of which none stands still while one is
        waited for; this one joins them."""
        self._company = [] if company is None else company
        self._company.append(self)
        self._settings, self._make, self._warm, self._tell = settings, make, warm, tell
        self.fleet = ReplicaSet(settings.role, settings.members)
        self._pulse = HeartbeatMonitor(self.fleet, settings.beat_seconds)
        self._actors: dict[str, Any] = {}
        self._places: dict[str, Placement] = {}
        self._pending: dict[ray.ObjectRef, PendingResult] = {}
        self._identities: dict[str, ActorIdentity | None] = {}
        """Whose logs to read when one dies: by then Ray may have forgotten."""
        self._newcomers: set[str] = set()
        """Started while the others were at work."""
        self._renewal: WeightUpdateRequest | None = None
        self._interrupted: Counter[str] = Counter()
        """How often in a row each was not given the whole of it."""
        self._answers: dict[str, Any] = {}
        """Of the newest start or renewal, by member."""
        self._begun: float | None = None
        self._strict = False
        """Whether a member that fails is an error, and not replaced."""
        self._jobs = Scheduler()
        self._looked = time.monotonic()
        self.busy_seconds = 0.0
        """Time that members had work, all together, since the start."""

    @property
    def names(self) -> list[str]:
        """Members that work, or could at once."""
        return self.fleet.of(ReplicaState.READY)

    def begin(self, *, strict: bool = True) -> None:
        """Has everybody start, and does not wait. `start` does."""
        self._begun, self._strict = time.monotonic(), strict
        self.act()

    def start(self, *, strict: bool = True) -> dict[str, Any]:
        """Starts everybody, unless that was begun, and waits until all are up. Returns their first answers.

        strict: a member that fails fails the start, as what is wrong with it is wrong with the next one as well.
        Without, of a run that has worked before, it is replaced, and nobody is waited for beyond the deadline of a
        start as long as there is somebody.
        """
        if self._begun is None:
            self.begin(strict=strict)
        deadline = (self._begun or 0.0) + self._settings.start_seconds
        while (missing := self.fleet.target - len(self.fleet.of(ReplicaState.STALE, ReplicaState.READY))) > 0:
            if not strict and missing < self.fleet.target and time.monotonic() >= deadline:
                break
            poll_once(self._company)
        self._strict = False
        return dict(self._answers)

    def withdraw(self) -> None:
        """Calls off who is being started and has no place yet, so that somebody else can have the next one."""
        for name in self.fleet.of(ReplicaState.STARTING):
            if not self._places[name].held:
                self._bury(name)
                self.fleet.withdrawn(name)

    def renew(self, renewal: WeightUpdateRequest, *, strict: bool = False) -> dict[str, Any]:
        """Gives everybody something new, and waits until all that are up have taken it. Returns their answers. strict:
        as for `start`."""
        self._renewal, self._answers = renewal, {}
        self.fleet.outdated(time.monotonic())
        for name in self.fleet.of(ReplicaState.STALE):
            self._ask_to_renew(name)
        self._strict = strict
        while self.fleet.of(ReplicaState.STALE) or not self.fleet.of(ReplicaState.READY):
            poll_once(self._company)
        self._strict = False
        return dict(self._answers)

    def open(self, job: TaskQueue) -> None:
        """Takes up work; items may come later. Members do jobs in the order in which they were opened."""
        self._jobs.open(job)

    def close(self, job: TaskQueue) -> None:
        """Gives work up: what members bring back of it is of no use any more."""
        self._jobs.close(job)

    def work(self, items: Sequence[str], call: Callable[[Any, list[int]], ray.ObjectRef], doing: str) -> list[Any]:
        """Has items, known by these names, done in shares by whoever is ready. Returns a result an item, in order.

        call: has an actor do some items, given by their places; its answer is a list with a result for each. Raises
        MemberFailed when work on an item raises again and again, Overdue when nobody brings an item back.
        """
        job = TaskQueue(call, doing)
        for name in items:
            job.add(name)
        self.open(job)
        try:
            while job.leases.open:
                poll_once(self._company)
            results = job.leases.collect()
            return [results[item] for item in range(len(items))]
        finally:
            self.close(job)

    def send(self, call: Callable[[Any], object]) -> None:
        """Has everybody do something whose answer nobody waits for."""
        for actor in self._actors.values():
            call(actor)

    def resize(self, members: int) -> None:
        """How many there should be. New ones are started, and those that are too many leave, in the turns to come."""
        if members != self.fleet.target:
            self._tell("resized", pool=self._settings.role, before=self.fleet.target, after=members)
            self.fleet.resize(members)

    def census(self) -> PoolStatus:
        """How the pool stands; may be asked from another thread."""
        fleet = self.fleet
        return PoolStatus(
            wanted=fleet.target,
            members=Counter(member.life for member in list(fleet.members.values())),
            restarts=fleet.restarts,
            lent=self._jobs.lent,
            waiting=self._jobs.waiting,
        )

    def awaited(self) -> list[PendingCall]:
        """Everybody, with what each was asked to do; may be asked from another thread."""
        asked = {pending.name: pending for pending in list(self._pending.values())}
        return [
            PendingCall(name=name, actor=actor, doing=asked[name].doing, since=asked[name].since)
            if name in asked
            else PendingCall(name=name, actor=actor)
            for name, actor in list(self._actors.items())
        ]

    def stop(self) -> None:
        if self in self._company:
            self._company.remove(self)
        for name in list(self._actors):
            self._bury(name)

    # ---- a turn

    @property
    def pending(self) -> list[ray.ObjectRef]:
        """Answers that members owe."""
        return list(self._pending)

    def act(self) -> None:
        """The first half of a turn: starts who is due, lets go who leaves, lends work."""
        now = time.monotonic()
        if self._begun is None:
            return  # somebody in its company is waited for
        for name in self.fleet.due(now):
            self._start(name, now)
        self._begin_round()
        self._let_go(now)
        self._lend(now)

    def hear(self) -> None:
        """The second half: takes the answers that have come, and notices who is late or silent."""
        # All that have come, before anybody is called late: the caller may have been away for longer than a deadline.
        if self._pending:
            for answer in ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)[0]:
                if (asked := self._pending.pop(answer, None)) is not None:
                    self._hear(answer, asked)
        self._notice_the_late(time.monotonic())
        for name in self._pulse.listen(self._actors, time.monotonic()):
            incarnation = self.fleet.members[name].incarnation
            asked = PendingResult(name=name, incarnation=incarnation, doing="", since=0.0, deadline=0.0)
            self._lose(asked, f"gave no sign of life for {self._settings.beat_seconds:g} s")

    def _start(self, name: str, now: float) -> None:
        member = self.fleet.starting(name, now)
        self._places[name] = Placement(name, self._settings.needs)
        self._actors[name] = self._make(name, self._places[name])
        if not self._strict:
            self._newcomers.add(name)
            self._tell("starting", member=name, incarnation=member.incarnation)
        self._ask(name, self._warm(self._actors[name]), "starting", self._settings.start_seconds, starts=True)

    def _let_go(self, now: float) -> None:
        for name in self.fleet.leavers():
            self.fleet.retire(name, now)
        for name in self.fleet.of(ReplicaState.DRAINING):
            if not self._jobs.held(name):
                self._bury(name)
                self.fleet.drained(name)
                self._tell("left", member=name)

    def _lend(self, now: float) -> None:
        asked = Counter((p.job, p.name) for p in self._pending.values() if p.job is not None)
        self.busy_seconds += (now - self._looked) * len({name for _, name in asked})
        self._looked = now
        for job, name, items in self._jobs.deal(
            asked, self.fleet.of(ReplicaState.READY), self.fleet.of(ReplicaState.DRAINING)
        ):
            answer = job.ask(self._actors[name], list(items))
            self._ask(name, answer, job.doing, self._settings.work_seconds, job=job, items=items)

    def _ask_to_renew(self, name: str) -> None:
        renewal = self._renewal
        if renewal is not None and renewal.call is not None:
            answer = renewal.call(self._actors[name])
            self._ask(name, answer, renewal.doing, self._settings.renew_seconds, renewal=renewal)

    def _begin_round(self) -> None:
        """Asks all who lack what is new to take it together, where it is given so and can be given now."""
        renewal = self._renewal
        if renewal is None or renewal.rounds is None:
            return
        asked = {pending.name for pending in self._pending.values() if pending.renewal is renewal}
        lacking = [name for name in self.fleet.of(ReplicaState.STALE) if name not in asked]
        if lacking and renewal.rounds.free():
            call = renewal.rounds.begin(lacking)
            for name in lacking:
                answer = call(self._actors[name])
                self._ask(name, answer, renewal.doing, self._settings.renew_seconds, renewal=renewal)

    def _ask(self, name: str, answer: ray.ObjectRef, doing: str, seconds: float, **more: Any) -> None:
        incarnation = self.fleet.members[name].incarnation
        now = time.monotonic()
        self._pending[answer] = PendingResult(
            name=name, incarnation=incarnation, doing=doing, since=now, deadline=now + seconds, **more
        )

    # ---- answers

    def _hear(self, answer: ray.ObjectRef, asked: PendingResult) -> None:
        try:
            value = ray.get(answer, timeout=FETCH_SECONDS)
        except RayTaskError as error:
            broken = isinstance(error.cause, ActorUnusable)
            if asked.renewal is not None and asked.renewal is not self._renewal and not broken:
                return  # of weights that are there no more; it has been asked to take newer ones
            if isinstance(error.cause, SyncInterrupted) and self._bears_interruption(asked, error.cause):
                return  # of the next round it will be one
            if asked.job is not None and not broken:
                self._failed(asked.job, asked, error)
            else:
                self._lose(asked, f"failed while {asked.doing}: {error.cause!r}", error)
            return
        except RayError as error:
            cause = describe(error, self._identities.get(asked.name))
            self._lose(asked, f"died while {asked.doing}: {cause}", error, cause.log_tail)
            return
        if asked.job is not None:
            self._take(asked.job, asked, value)
        elif asked.renewal is None:
            self._started(asked.name, value)
        elif asked.renewal is self._renewal:  # else something newer has been asked of it meanwhile
            self._renewed(asked, asked.renewal, value)

    def _bears_interruption(self, asked: PendingResult, reason: SyncInterrupted) -> bool:
        self._interrupted[asked.name] += 1
        self._tell("interrupted", member=asked.name, doing=asked.doing, reason=str(reason))
        return self._interrupted[asked.name] < INTERRUPTED_TIMES

    def _started(self, name: str, value: Any) -> None:
        now = time.monotonic()
        if self._renewal is None:
            self._answers[name] = value
        with suppress(RayError):  # for its obituary alone
            self._identities[name] = find_identity(self._actors[name])
        self.fleet.started(name, now)
        if self._settings.renewed:
            self._ask_to_renew(name)
        else:
            self._ready(name, now)

    def _renewed(self, asked: PendingResult, renewal: WeightUpdateRequest, value: Any) -> None:
        try:
            renewal.check(asked.name, value)
        except RuntimeError as error:
            if not self.fleet.of(ReplicaState.READY) and self.fleet.of(ReplicaState.STALE) == [asked.name]:
                raise  # nobody has passed: it is not this member
            self._lose(asked, str(error), bear=True)
            return
        self._answers[asked.name] = value
        self._ready(asked.name, time.monotonic())

    def _ready(self, name: str, now: float) -> None:
        self.fleet.renewed(name, now)
        self._interrupted.pop(name, None)
        member = self.fleet.members[name]
        if name in self._newcomers:
            self._newcomers.discard(name)
            self._tell("joined", member=name, incarnation=member.incarnation)

    def _take(self, job: TaskQueue, asked: PendingResult, value: Any) -> None:
        if job not in self._jobs:
            return
        for item, result in job.read(value, asked.items):
            if isinstance(result, TaskFailed):
                job.leases.give_back(item)
                self._count_failures(job, (item,), asked, result.error)
            else:
                job.take(item, result)

    def _failed(self, job: TaskQueue, asked: PendingResult, error: RayTaskError) -> None:
        """Work raised. The member goes on; what it had is tried once more, by whoever is free."""
        if job in self._jobs:
            again = job.leases.revoke(asked.name)
            self._count_failures(job, again, asked, f"{error.cause!r}\n{error}", error)

    def _count_failures(
        self, job: TaskQueue, items: tuple[int, ...], asked: PendingResult, error: str, cause: Exception | None = None
    ) -> None:
        if worn := job.failed(items):
            raise ActorFailed(
                f"{asked.name} failed while {asked.doing}, {FAILED_TIMES} times with each of {worn}: {error}"
            ) from cause
        self._tell("work failed", member=asked.name, doing=asked.doing, error=error.partition("\n")[0])

    def _notice_the_late(self, now: float) -> None:
        for answer, asked in list(self._pending.items()):
            if now < asked.deadline or answer not in self._pending:
                continue
            if asked.starts and not self._places[asked.name].held:
                missing = missing_resources(self._settings.needs)
                if self._strict:
                    raise ActorFailed(f"{asked.name} has no place to start: {missing}")
                self._tell("no room", member=asked.name, reason=missing)
                self._pending[answer] = replace(asked, deadline=now + self._settings.start_seconds)
            else:
                self._lose(asked, f"gave no answer in time while {asked.doing}")

    def _lose(
        self,
        asked: PendingResult,
        reason: str,
        error: Exception | None = None,
        last_words: tuple[str, ...] = (),
        *,
        bear: bool = False,
    ) -> None:
        """A member is gone, or as good as gone: what it had goes to another, and somebody takes its place. bear: also
        where a member that fails is an error."""
        name = asked.name
        member = self.fleet.members.get(name)
        if member is None or member.incarnation != asked.incarnation:
            return
        if self._strict and not bear:
            raise ActorFailed(f"{name} {reason}") from error
        lost = self._jobs.revoke(name)
        self._bury(name)
        self.fleet.died(name, reason, time.monotonic())
        self._tell("lost", member=name, incarnation=member.incarnation, reason=reason, items=lost, log=list(last_words))

    def _bury(self, name: str) -> None:
        actor = self._actors.pop(name)
        ray.kill(actor)
        self._places.pop(name).give_up()
        delete_heartbeats(actor)
        self._pending = {a: p for a, p in self._pending.items() if p.name != name}
        self._interrupted.pop(name, None)
        self._newcomers.discard(name)


class SpeechPool:
    """Members by name. One that dies is replaced, and what it was working on is done by another."""

    _crew: ActorPool

    @property
    def names(self) -> list[str]:
        """Members that can be given work: of those that must hold what is newest, the ones that do."""
        return self._crew.names

    @property
    def target(self) -> int:
        """How many members there are to be."""
        return self._crew.fleet.target

    @property
    def busy_seconds(self) -> float:
        """Time that members had work, all together, since the start."""
        return self._crew.busy_seconds

    def resize(self, members: int) -> None:
        """How many members there should be."""
        self._crew.resize(members)

    def withdraw(self) -> None:
        """Calls off who waits for a place."""
        self._crew.withdraw()

    def census(self) -> PoolStatus:
        """How the pool stands; may be asked from another thread."""
        return self._crew.census()

    def awaited(self) -> list[PendingCall]:
        """Everybody, with what each was asked to do."""
        return self._crew.awaited()

    def stop(self) -> None:
        self._crew.stop()
