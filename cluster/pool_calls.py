"""Configuration of an actor pool and the records of its calls. Plain data of `cluster.actor_pool`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from cluster.task_queue import TaskQueue


@dataclass(frozen=True, kw_only=True)
class ActorPoolConfig:
    role: str
    """Prefix of actor names: "rollout"."""
    num_replicas: int
    start_timeout_s: float
    """Deadline for an actor to start."""
    update_timeout_s: float
    """Deadline for an actor to take an update (weights)."""
    task_timeout_s: float
    """Deadline for the result of a task call."""
    heartbeat_timeout_s: float
    """Longest time without a heartbeat before an actor counts as dead."""
    needs_update: bool
    """True if actors must take an update (weights) before they get tasks."""
    resources: Mapping[str, float]
    """Ray resources of each actor."""


class BroadcastRounds(Protocol):
    """Sends an update to several actors at once, while they receive it."""

    def free(self) -> bool:
        """Return True if a round can begin: the sender is idle."""

    def begin(self, names: Sequence[str]) -> Callable[[Any], ray.ObjectRef]:
        """Begin a round with these actors. Return the call that makes one of them receive."""


@dataclass(frozen=True, kw_only=True)
class WeightUpdateRequest:
    """Update that every actor must take before it gets tasks."""

    check: Callable[[str, Any], None]
    """Raises RuntimeError if an actor's result is wrong."""
    doing: str
    """Activity, for messages: "taking weights 3"."""
    call: Callable[[Any], ray.ObjectRef] | None = None
    """Sends the update to one actor, at any time."""
    rounds: BroadcastRounds | None = None
    """Set instead of `call` if the update is available only during a broadcast."""


@dataclass(frozen=True, kw_only=True)
class PendingResult:
    """Call whose result has not arrived."""

    name: str
    incarnation: int
    doing: str
    since: float
    deadline: float
    queue: TaskQueue | None = None
    """Set for task calls. The result is dropped if the queue was removed from the pool."""
    tasks: tuple[int, ...] = ()
    """Tasks of the queue that the call handed out."""
    update: WeightUpdateRequest | None = None
    """Set for calls that send an update."""
    is_start: bool = False
    """True for the first call of a new actor."""
