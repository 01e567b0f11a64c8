"""State machine of a pool's replicas: which to start, to drain and to restart. Pure: no Ray, no clock.

    starting ──mark_started──▶ stale ──mark_ready──▶ ready ──mark_stale──▶ stale …
        │                        │                     │
        └────────────────────────┴──────mark_dead──────┤
                                                       ├──mark_draining──▶ draining ──remove──▶ (gone)
                                                       ▼
                                                     dead ──▶ its replacement, of the same name: starting

A replica has a name ("rollout-0"); its replacement has the same name and the next incarnation. Only ready replicas get
tasks. A replacement is stale until it holds the current weights. A replica that dies repeatedly without becoming ready
restarts with exponential backoff. The pool fails once no replica is alive and each has failed `max_failures` times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class ReplicaState(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    """Up, but without the current weights."""
    READY = "ready"
    DRAINING = "draining"
    """Finishes its tasks, then is removed."""
    DEAD = "dead"


UP = (ReplicaState.STALE, ReplicaState.READY, ReplicaState.DRAINING)


ALIVE = (ReplicaState.STARTING, *UP)


MAX_BACKOFF_S = 60.0
"""Longest backoff between restarts of a replica that dies while starting."""


@dataclass
class Replica:
    """One incarnation of a replica."""

    name: str
    index: int
    """The number in its name."""
    incarnation: int
    state: ReplicaState
    since: float
    """Time of the last change of state, on the caller's clock."""
    reason: str = ""
    """Cause of death."""
    heartbeat: object = None
    """Newest heartbeat."""
    heartbeat_since: float | None = None
    """Time at which that was first seen; None before the first check."""


class PoolFailed(RuntimeError):
    """Every actor of the pool died and all restart attempts failed."""


class ReplicaSet:
    """Replicas of one pool, by name."""

    def __init__(self, role: str, target: int, *, max_failures: int = 3, backoff_s: float = 1.0) -> None:
        """
        Args:
            role: Prefix of names.
            target: Target number of replicas.
            max_failures: Deaths in a row without becoming ready after which a replica counts as failed.
            backoff_s: Backoff before the second restart; doubles with each one.
        """
        self._role, self._max_failures, self._backoff_s = role, max_failures, backoff_s
        self.by_name: dict[str, Replica] = {}
        """Ordered by index, since a large pool is scanned many times per iteration."""
        self.restarts = 0
        """Replicas started as a replacement."""
        self._failures: dict[str, int] = {}
        self._incarnations: dict[str, int] = {}
        self.resize(target)

    def names_in(self, *states: ReplicaState) -> list[str]:
        """Return names of replicas in these states, ordered by index."""
        return [name for name, replica in self.by_name.items() if replica.state in states]

    def resize(self, target: int) -> None:
        """Set the target number of replicas. `due` and `surplus` then return what to start and drain."""
        if target < 1:
            raise ValueError(f"size of pool {self._role}: {target}; use at least 1")
        self.target = target
        self._targets = [f"{self._role}-{index}" for index in range(target)]

    def due(self, now: float) -> list[str]:
        """Return the replicas to start now. Raise PoolFailed if none is alive and all have failed."""
        targets = self._targets
        empty = [n for n in targets if n not in self.by_name or self.by_name[n].state == ReplicaState.DEAD]
        failed = [name for name in empty if self._failures.get(name, 0) >= self._max_failures]
        if len(failed) == len(targets) and not self.names_in(*ALIVE):
            reasons = {self.by_name[name].reason for name in failed}
            raise PoolFailed(
                f"all of {', '.join(targets)} died {self._max_failures} times while starting: {'; '.join(reasons)}"
            )
        return [name for name in empty if now >= self._not_before(name)]

    def surplus(self) -> list[str]:
        """Return replicas beyond the target that are not draining yet."""
        states = (ReplicaState.STARTING, ReplicaState.STALE, ReplicaState.READY)
        return [name for name, r in self.by_name.items() if r.index >= self.target and r.state in states]

    def mark_starting(self, name: str, now: float) -> Replica:
        """Record that a new incarnation of a replica is starting. Return it."""
        known = name in self.by_name
        self.restarts += known
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        index = int(name.rpartition("-")[2])
        self.by_name[name] = Replica(name, index, self._incarnations[name], ReplicaState.STARTING, now)
        if not known:
            self.by_name = dict(sorted(self.by_name.items(), key=lambda item: item[1].index))
        return self.by_name[name]

    def mark_started(self, name: str, now: float) -> None:
        """Record that a replica is up, without the current weights."""
        self._move(name, ReplicaState.STALE, now, ReplicaState.STARTING)

    def mark_ready(self, name: str, now: float) -> None:
        """Record that a replica holds the current weights."""
        self._move(name, ReplicaState.READY, now, ReplicaState.STALE)
        self._failures[name] = 0

    def mark_stale(self, now: float) -> list[str]:
        """Record that every ready replica needs newer weights. Return their names."""
        names = self.names_in(ReplicaState.READY)
        for name in names:
            self._move(name, ReplicaState.STALE, now, ReplicaState.READY)
        return names

    def record_heartbeat(self, name: str, heartbeat: object, now: float) -> None:
        """Record the newest heartbeat. A changed value restarts the timer."""
        replica = self.by_name[name]
        if replica.heartbeat_since is None or heartbeat != replica.heartbeat:
            replica.heartbeat, replica.heartbeat_since = heartbeat, now

    def timed_out(self, now: float, timeout_s: float) -> list[str]:
        """Return replicas that are up and without a new heartbeat for `timeout_s`."""
        checked = [(name, r.heartbeat_since) for name, r in self.by_name.items() if r.state in UP]
        return [name for name, since in checked if since is not None and now - since >= timeout_s]

    def reset_heartbeats(self, now: float) -> None:
        """Restart all heartbeat timers: the heartbeat store was unreachable."""
        for replica in self.by_name.values():
            replica.heartbeat_since = now if replica.heartbeat_since is not None else None

    def cancel_start(self, name: str) -> None:
        """Remove a replica that is starting. It does not count as a failure, and may start again."""
        self._move(name, ReplicaState.DEAD, self.by_name[name].since, ReplicaState.STARTING)
        del self.by_name[name]

    def mark_draining(self, name: str, now: float) -> None:
        """Record that a replica gets no more tasks."""
        self._move(name, ReplicaState.DRAINING, now, ReplicaState.STARTING, ReplicaState.STALE, ReplicaState.READY)

    def remove(self, name: str) -> None:
        """Remove a drained replica."""
        del self.by_name[name]

    def mark_dead(self, name: str, reason: str, now: float) -> None:
        """Record a death. A replica beyond the target is removed."""
        replica = self.by_name[name]
        if replica.state in (ReplicaState.STARTING, ReplicaState.STALE):
            self._failures[name] = self._failures.get(name, 0) + 1
        if replica.index >= self.target:
            del self.by_name[name]
            return
        replica.state, replica.since, replica.reason = ReplicaState.DEAD, now, reason

    def _not_before(self, name: str) -> float:
        failures = self._failures.get(name, 0)
        if name not in self.by_name or not failures:
            return float("-inf")
        return self.by_name[name].since + min(self._backoff_s * 2 ** (failures - 1), MAX_BACKOFF_S)

    def _move(self, name: str, to: ReplicaState, now: float, *allowed: ReplicaState) -> None:
        replica = self.by_name[name]
        if replica.state not in allowed:
            raise ValueError(f"{name} cannot become {to} while it is {replica.state}")
        replica.state, replica.since = to, now


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """Status of a pool: its replicas and its tasks."""

    target: int
    """Target number of replicas."""
    replicas: Mapping[ReplicaState, int]
    """Number of replicas by state."""
    restarts: int
    """Replicas started so far as a replacement."""
    in_flight: int = 0
    """Tasks assigned to replicas."""
    queued: int = 0
    """Tasks that wait for a replica."""
