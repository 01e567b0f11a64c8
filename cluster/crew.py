"""A pool's members as Ray actors: started, renewed, replaced, and lent work. `fleet` and `leases` decide; this moves.

Everything happens in the caller's thread, inside `start`, `renew` and `work`: each takes turns until it has what it is
for. A member that is being replaced meanwhile comes further with every turn, whichever of the three takes it.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.asking import CrewSettings, Pending, Renewal
from cluster.census import Census
from cluster.fleet import Fleet, Life
from cluster.leases import Lease, Leases
from cluster.member import Identity, identify
from cluster.places import Place, lacking
from cluster.postmortem import describe
from cluster.pulse import Pulse, forget
from cluster.waiting import MemberBroken, MemberFailed, Overdue
from cluster.watchdog import Waiting

TURN_SECONDS = 0.5
"""Longest wait of one turn: how late a deadline is noticed."""
FETCH_SECONDS = 120.0
"""For an answer that is there to come over: the node that has it may die meanwhile."""
LENT_TIMES = 4
"""How often an item is lent before it is taken to be what kills its members."""
NAMED = 5
"""Items that a message names."""
FAILED_TIMES = 2
"""How often work on an item may raise before that is taken to be the item's own."""


class Crew:
    """Members by name. `start` first, `renew` before the first `work`."""

    def __init__(
        self,
        settings: CrewSettings,
        make: Callable[[str, Place], Any],
        warm: Callable[[Any], ray.ObjectRef],
        tell: Callable[..., None],
    ) -> None:
        """make: a new actor for a name, in a place that is held for it alone. warm: its first call, whose answer says
        that it is up. tell: takes events, a kind and fields."""
        self._settings, self._make, self._warm, self._tell = settings, make, warm, tell
        self.fleet = Fleet(settings.role, settings.members)
        self._pulse = Pulse(self.fleet, settings.beat_seconds)
        self._actors: dict[str, Any] = {}
        self._places: dict[str, Place] = {}
        self._pending: dict[ray.ObjectRef, Pending] = {}
        self._identities: dict[str, Identity | None] = {}
        """Whose logs to read when one dies: by then Ray may have forgotten."""
        self._newcomers: set[str] = set()
        """Started while the others were at work."""
        self._renewal: Renewal | None = None
        self._answers: dict[str, Any] = {}
        """Of the newest start or renewal, by member."""
        self._leases: Leases | None = None
        self._call: Callable[[Any, list[int]], ray.ObjectRef] | None = None
        self._doing = ""
        self._items: Sequence[str] = ()
        self._failures: dict[int, int] = {}

    @property
    def names(self) -> list[str]:
        """Members that work, or could at once."""
        return self.fleet.of(Life.READY)

    def start(self, *, strict: bool = True) -> dict[str, Any]:
        """Starts everybody, and waits until all are up. Returns their first answers.

        strict: a member that fails fails the start, as what is wrong with it is wrong with the next one as well.
        Without, of a run that has worked before, it is replaced, and nobody is waited for beyond the deadline of a
        start as long as there is somebody.
        """
        deadline = time.monotonic() + self._settings.start_seconds
        while (missing := self.fleet.target - len(self.fleet.of(Life.STALE, Life.READY))) > 0:
            if not strict and missing < self.fleet.target and time.monotonic() >= deadline:
                break
            self._turn(strict=strict)
        return dict(self._answers)

    def withdraw(self) -> None:
        """Calls off who is being started and has no place yet, so that somebody else can have the next one."""
        for name in self.fleet.of(Life.STARTING):
            if not self._places[name].held:
                self._bury(name)
                self.fleet.withdrawn(name)

    def renew(self, renewal: Renewal, *, strict: bool = False) -> dict[str, Any]:
        """Gives everybody something new, and waits until all that are up have taken it. Returns their answers. strict:
        as for `start`."""
        self._renewal, self._answers = renewal, {}
        self.fleet.outdated(time.monotonic())
        for name in self.fleet.of(Life.STALE):
            self._ask_to_renew(name)
        while self.fleet.of(Life.STALE) or not self.fleet.of(Life.READY):
            self._turn(strict=strict)
        return dict(self._answers)

    def work(self, items: Sequence[str], call: Callable[[Any, list[int]], ray.ObjectRef], doing: str) -> list[Any]:
        """Has items, known by these names, done by whoever is ready. Returns a result an item, in order.

        call: has an actor do some items, given by their places; its answer is a list with a result for each. Raises
        MemberFailed when work on an item raises again and again, Overdue when nobody brings an item back.
        """
        self._leases, self._call, self._doing, self._failures = Leases(len(items)), call, doing, {}
        self._items = items
        try:
            while self._leases.open:
                self._turn()
            return self._leases.results()
        finally:
            self._leases = None

    def resize(self, members: int) -> None:
        """How many there should be. New ones are started, and those that are too many leave, in the turns to come."""
        if members != self.fleet.target:
            self._tell("resized", pool=self._settings.role, before=self.fleet.target, after=members)
            self.fleet.resize(members)

    def census(self) -> Census:
        """How the pool stands; may be asked from another thread."""
        leases, fleet = self._leases, self.fleet
        return Census(
            wanted=fleet.target,
            members=Counter(member.life for member in list(fleet.members.values())),
            restarts=fleet.restarts,
            lent=leases.lent if leases else 0,
            waiting=leases.waiting if leases else 0,
        )

    def awaited(self) -> list[Waiting]:
        """Everybody, with what each was asked to do; may be asked from another thread."""
        asked = {pending.name: pending for pending in list(self._pending.values())}
        return [
            Waiting(name=name, actor=actor, doing=asked[name].doing, since=asked[name].since)
            if name in asked
            else Waiting(name=name, actor=actor)
            for name, actor in list(self._actors.items())
        ]

    def stop(self) -> None:
        for name in list(self._actors):
            self._bury(name)

    # ---- a turn

    def _turn(self, *, strict: bool = False) -> None:
        now = time.monotonic()
        for name in self.fleet.due(now):
            self._start(name, now, strict)
        self._let_go(now)
        if self._leases is not None:
            self._lend(self._leases, now)
        if not self._pending:
            time.sleep(TURN_SECONDS)  # everybody's next try is still to come
            return
        ray.wait(list(self._pending), num_returns=1, timeout=TURN_SECONDS)
        # All that have come, before anybody is called late: the caller may have been away for longer than a deadline.
        for answer in ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)[0]:
            if (asked := self._pending.pop(answer, None)) is not None:
                self._hear(answer, asked, strict)
        self._notice_the_late(time.monotonic(), strict)
        for name in self._pulse.listen(self._actors, time.monotonic()):
            incarnation = self.fleet.members[name].incarnation
            asked = Pending(name=name, incarnation=incarnation, doing="", since=0.0, deadline=0.0)
            self._lose(asked, f"gave no sign of life for {self._settings.beat_seconds:g} s", strict)

    def _start(self, name: str, now: float, strict: bool) -> None:
        member = self.fleet.starting(name, now)
        self._places[name] = Place(name, self._settings.needs)
        self._actors[name] = self._make(name, self._places[name])
        if not strict:
            self._newcomers.add(name)
            self._tell("starting", member=name, incarnation=member.incarnation)
        self._ask(name, self._warm(self._actors[name]), "starting", self._settings.start_seconds, starts=True)

    def _let_go(self, now: float) -> None:
        for name in self.fleet.leavers():
            self.fleet.retire(name, now)
        busy = self._leases.busy(self.fleet.members) if self._leases else set()
        for name in self.fleet.of(Life.DRAINING):
            if name not in busy:
                self._bury(name)
                self.fleet.drained(name)
                self._tell("left", member=name)

    def _lend(self, leases: Leases, now: float) -> None:
        ready = self.fleet.of(Life.READY)
        busy = leases.busy(ready)
        for lease in leases.give([name for name in ready if name not in busy], now, self._settings.work_seconds):
            if worn := [self._items[item] for item in lease.items if leases.attempts[item] > LENT_TIMES]:
                raise Overdue(f"nobody finished {self._doing}: lent {LENT_TIMES} times each, to no end: {_few(worn)}")
            assert self._call is not None
            answer = self._call(self._actors[lease.member], list(lease.items))
            self._ask(lease.member, answer, self._doing, self._settings.work_seconds, lease=lease, batch=leases)

    def _ask_to_renew(self, name: str) -> None:
        renewal = self._renewal
        if renewal is not None:
            answer = renewal.call(self._actors[name])
            self._ask(name, answer, renewal.doing, self._settings.renew_seconds, renewal=renewal)

    def _ask(self, name: str, answer: ray.ObjectRef, doing: str, seconds: float, **more: Any) -> None:
        incarnation = self.fleet.members[name].incarnation
        now = time.monotonic()
        self._pending[answer] = Pending(
            name=name, incarnation=incarnation, doing=doing, since=now, deadline=now + seconds, **more
        )

    # ---- answers

    def _hear(self, answer: ray.ObjectRef, asked: Pending, strict: bool) -> None:
        try:
            value = ray.get(answer, timeout=FETCH_SECONDS)
        except RayTaskError as error:
            broken = isinstance(error.cause, MemberBroken)
            if asked.renewal is not None and asked.renewal is not self._renewal and not broken:
                return  # of weights that are there no more; it has been asked to take newer ones
            if asked.lease is not None and not broken:
                if asked.batch is self._leases:
                    self._failed(asked.lease, asked, error)
            else:
                self._lose(asked, f"failed while {asked.doing}: {error.cause!r}", strict, error)
            return
        except RayError as error:
            cause = describe(error, self._identities.get(asked.name))
            self._lose(asked, f"died while {asked.doing}: {cause}", strict, error, cause.log_tail)
            return
        if asked.lease is not None:
            if self._leases is not None and asked.batch is self._leases:
                self._leases.take(asked.lease, value)
        elif asked.renewal is None:
            self._started(asked.name, value)
        elif asked.renewal is self._renewal:  # else something newer has been asked of it meanwhile
            self._renewed(asked, asked.renewal, value)

    def _started(self, name: str, value: Any) -> None:
        now = time.monotonic()
        if self._renewal is None:
            self._answers[name] = value
        with suppress(RayError):  # for its obituary alone
            self._identities[name] = identify(self._actors[name])
        self.fleet.started(name, now)
        if self._settings.renewed:
            self._ask_to_renew(name)
        else:
            self._ready(name, now)

    def _renewed(self, asked: Pending, renewal: Renewal, value: Any) -> None:
        try:
            renewal.check(asked.name, value)
        except RuntimeError as error:
            if not self.fleet.of(Life.READY) and self.fleet.of(Life.STALE) == [asked.name]:
                raise  # nobody has passed: it is not this member
            self._lose(asked, str(error), False)
            return
        self._answers[asked.name] = value
        self._ready(asked.name, time.monotonic())

    def _ready(self, name: str, now: float) -> None:
        self.fleet.renewed(name, now)
        member = self.fleet.members[name]
        if name in self._newcomers:
            self._newcomers.discard(name)
            self._tell("joined", member=name, incarnation=member.incarnation)

    def _failed(self, lease: Lease, asked: Pending, error: RayTaskError) -> None:
        """Work raised. The member goes on; what it had is tried once more, by whoever is free."""
        again = self._leases.revoke(lease.member) if self._leases else ()
        for item in again:
            self._failures[item] = self._failures.get(item, 0) + 1
        if worn := [self._items[item] for item in again if self._failures[item] >= FAILED_TIMES]:
            raise MemberFailed(
                f"{asked.name} failed while {asked.doing}, {FAILED_TIMES} times with each of {_few(worn)}: "
                f"{error.cause!r}\n{error}"
            ) from error
        self._tell("work failed", member=asked.name, doing=asked.doing, error=repr(error.cause))

    def _notice_the_late(self, now: float, strict: bool) -> None:
        for answer, asked in list(self._pending.items()):
            if now < asked.deadline or answer not in self._pending:
                continue
            if asked.starts and not self._places[asked.name].held:
                missing = lacking(self._settings.needs)
                if strict:
                    raise MemberFailed(f"{asked.name} has no place to start: {missing}")
                self._tell("no room", member=asked.name, reason=missing)
                self._pending[answer] = replace(asked, deadline=now + self._settings.start_seconds)
            else:
                self._lose(asked, f"gave no answer in time while {asked.doing}", strict)

    def _lose(
        self,
        asked: Pending,
        reason: str,
        strict: bool,
        error: Exception | None = None,
        last_words: tuple[str, ...] = (),
    ) -> None:
        """A member is gone, or as good as gone: what it had goes to another, and somebody takes its place."""
        name = asked.name
        member = self.fleet.members.get(name)
        if member is None or member.incarnation != asked.incarnation:
            return
        if strict:
            raise MemberFailed(f"{name} {reason}") from error
        lost = self._leases.revoke(name) if self._leases is not None else ()
        self._bury(name)
        self.fleet.died(name, reason, time.monotonic())
        self._tell(
            "lost", member=name, incarnation=member.incarnation, reason=reason, items=len(lost), log=list(last_words)
        )

    def _bury(self, name: str) -> None:
        actor = self._actors.pop(name)
        ray.kill(actor)
        self._places.pop(name).give_up()
        forget(actor)
        self._pending = {a: p for a, p in self._pending.items() if p.name != name}
        self._newcomers.discard(name)


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
