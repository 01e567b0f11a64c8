"""What a pool's members are asked, and how long each question may take. Plain data of `cluster.crew`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from cluster.jobs import Job


@dataclass(frozen=True, kw_only=True)
class CrewSettings:
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


class Rounds(Protocol):
    """Gives something new to several members at once, while they take it."""

    def free(self) -> bool:
        """Whether a round can begin: the giver does nothing else."""

    def begin(self, names: Sequence[str]) -> Callable[[Any], ray.ObjectRef]:
        """Has it begin, with these members. Returns what has one of them take part."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What every member must be given before it gets work."""

    check: Callable[[str, Any], None]
    """Raises when a member's answer will not do."""
    doing: str
    call: Callable[[Any], ray.ObjectRef] | None = None
    """Gives it to one member, at any time."""
    rounds: Rounds | None = None
    """Set instead where it can be had only while it is given."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An answer that is waited for."""

    name: str
    incarnation: int
    doing: str
    since: float
    deadline: float
    job: Job | None = None
    """Set for work: an answer may come when that has been given up, and belongs to nothing any more."""
    items: tuple[int, ...] = ()
    """Of the job, that the question brought."""
    renewal: Renewal | None = None
    """Set when it is asked to take what is new."""
    starts: bool = False
    """Whether it is the first answer of a new member."""
