"""How a pool stands at one moment, in numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.fleet import Life


@dataclass(frozen=True, kw_only=True)
class Census:
    """The members of a pool, and the work that it has."""

    wanted: int
    """How many members there are to be."""
    members: Mapping[Life, int]
    """How many there are, by state of life."""
    restarts: int
    """Members started so far in the place of one that died."""
    lent: int = 0
    """Items of work in members' hands."""
    waiting: int = 0
    """Items that nobody has yet."""
