"""How a pool stands at one moment, in numbers.

Who belongs to a pool, in which state of life, and who must be started or let go. Pure: no Ray, no clock.

    starting ──started──▶ stale ──renewed──▶ ready ──outdated──▶ stale …
        │                   │                  │
        └───────────────────┴───────died───────┤
                                               ├──retire──▶ draining ──drained──▶ (gone)
                                               ▼
                                             dead ──▶ a successor in the same place: starting

A place is a name ("rollout-0"); who dies is succeeded there by the next incarnation. Only ready members get work; a
successor passes through stale, where it is given what the others have, before it is ready. A place whose members die
one after another without ever becoming ready waits longer each time; the pool is given up when nobody lives and each
place has failed `tries` times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class ReplicaState(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    """Up, but without what the others hold (weights)."""
    READY = "ready"
    DRAINING = "draining"
    """Finishes its work and leaves."""
    DEAD = "dead"


UP = (ReplicaState.STALE, ReplicaState.READY, ReplicaState.DRAINING)


LIVING = (ReplicaState.STARTING, *UP)


LONGEST_PAUSE = 60.0
"""Seconds between two tries of a place whose members die while starting, while others of the pool live."""


@dataclass
class Replica:
    """One incarnation in a place."""

    name: str
    place: int
    """The number in its name."""
    incarnation: int
    life: ReplicaState
    since: float
    """When it came into this state, in the clock of the caller."""
    reason: str = ""
    """Why it died."""
    beat: object = None
    """Its newest sign of life."""
    beat_since: float | None = None
    """When that was seen first; None before any look."""


class PoolFailed(RuntimeError):
    """A pool has nobody left, and those that were started died again and again."""


class ReplicaSet:
    """The members of one pool, by place."""

    def __init__(self, role: str, target: int, *, tries: int = 3, pause: float = 1.0) -> None:
        """role: what names begin with. target: how many members there should be. tries: members of a place that may
        die in a row without having been ready. pause: seconds before the second of them is started; doubles."""
        self._role, self._tries, self._pause = role, tries, pause
        self.members: dict[str, Replica] = {}
        """In the order of their places. A pool is looked through many times in an iteration, and may be large."""
        self.restarts = 0
        """Members started in the place of one that died."""
        self._failures: dict[str, int] = {}
        self._incarnations: dict[str, int] = {}
        self.resize(target)

    def of(self, *lives: ReplicaState) -> list[str]:
        """Names in these states, in the order of their places."""
        return [name for name, member in self.members.items() if member.life in lives]

    def resize(self, target: int) -> None:
        """How many members there should be from now on; `leavers` and `due` say what follows from it."""
        if target < 1:
            raise ValueError(f"a pool of {self._role} needs at least one member, not {target}")
        self.target = target
        self._wanted = [f"{self._role}-{place}" for place in range(target)]

    def due(self, now: float) -> list[str]:
        """Places in which a member must be started now. Raises GivenUp when there is nobody and nobody will come."""
        wanted = self._wanted
        empty = [name for name in wanted if name not in self.members or self.members[name].life == ReplicaState.DEAD]
        hopeless = [name for name in empty if self._failures.get(name, 0) >= self._tries]
        if len(hopeless) == len(wanted) and not self.of(*LIVING):
            reasons = {self.members[name].reason for name in hopeless}
            raise PoolFailed(
                f"all of {', '.join(wanted)} died {self._tries} times while starting: {'; '.join(reasons)}"
            )
        return [name for name in empty if now >= self._not_before(name)]

    def leavers(self) -> list[str]:
        """Members beyond the target that are not leaving yet."""
        alive = (ReplicaState.STARTING, ReplicaState.STALE, ReplicaState.READY)
        return [name for name, m in self.members.items() if m.place >= self.target and m.life in alive]

    def starting(self, name: str, now: float) -> Replica:
        """Somebody is being started in this place."""
        self.restarts += name in self.members
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        place = int(name.rpartition("-")[2])
        known = name in self.members
        self.members[name] = Replica(name, place, self._incarnations[name], ReplicaState.STARTING, now)
        if not known:
            self.members = dict(sorted(self.members.items(), key=lambda item: item[1].place))
        return self.members[name]

    def started(self, name: str, now: float) -> None:
        self._move(name, ReplicaState.STALE, now, ReplicaState.STARTING)

    def renewed(self, name: str, now: float) -> None:
        """It holds what the others hold."""
        self._move(name, ReplicaState.READY, now, ReplicaState.STALE)
        self._failures[name] = 0

    def outdated(self, now: float) -> list[str]:
        """There is something new that every ready member must be given. Returns who."""
        names = self.of(ReplicaState.READY)
        for name in names:
            self._move(name, ReplicaState.STALE, now, ReplicaState.READY)
        return names

    def beat(self, name: str, sign: object, now: float) -> None:
        """Its newest sign of life, whatever that is; another one than before says that it lives."""
        member = self.members[name]
        if member.beat_since is None or sign != member.beat:
            member.beat, member.beat_since = sign, now

    def silent(self, now: float, seconds: float) -> list[str]:
        """Members that live, and whose sign of life has not changed for this long."""
        looked = [(n, m.beat_since) for n, m in self.members.items() if m.life in UP]
        return [name for name, since in looked if since is not None and now - since >= seconds]

    def deaf(self, now: float) -> None:
        """Nobody could be listened to; silence counts anew from here."""
        for member in self.members.values():
            member.beat_since = now if member.beat_since is not None else None

    def withdrawn(self, name: str) -> None:
        """It was being started, and was called off; that is no failure, and it may be started again."""
        self._move(name, ReplicaState.DEAD, self.members[name].since, ReplicaState.STARTING)
        del self.members[name]

    def retire(self, name: str, now: float) -> None:
        self._move(name, ReplicaState.DRAINING, now, ReplicaState.STARTING, ReplicaState.STALE, ReplicaState.READY)

    def drained(self, name: str) -> None:
        """It has left."""
        del self.members[name]

    def died(self, name: str, reason: str, now: float) -> None:
        member = self.members[name]
        if member.life in (ReplicaState.STARTING, ReplicaState.STALE):
            self._failures[name] = self._failures.get(name, 0) + 1
        if member.place >= self.target:
            del self.members[name]
            return
        member.life, member.since, member.reason = ReplicaState.DEAD, now, reason

    def _not_before(self, name: str) -> float:
        failures = self._failures.get(name, 0)
        if name not in self.members or not failures:
            return float("-inf")
        return self.members[name].since + min(self._pause * 2 ** (failures - 1), LONGEST_PAUSE)

    def _move(self, name: str, to: ReplicaState, now: float, *allowed: ReplicaState) -> None:
        member = self.members[name]
        if member.life not in allowed:
            raise ValueError(f"{name} cannot become {to} while it is {member.life}")
        member.life, member.since = to, now


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """The members of a pool, and the work that it has."""

    wanted: int
    """How many members there are to be."""
    members: Mapping[ReplicaState, int]
    """How many there are, by state of life."""
    restarts: int
    """Members started so far in the place of one that died."""
    lent: int = 0
    """Items of work in members' hands."""
    waiting: int = 0
    """Items that nobody has yet."""
