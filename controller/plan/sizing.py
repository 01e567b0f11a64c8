"""How many members of each role a job needs, from what one of them does in a second. Pure.

A role's work is taken to divide evenly among its members: time = rate · replies / members. That holds until a member
has a single group, which cannot be divided, so no role is given more members than there are prompts. Without overlap an
iteration is the sum of its phases; with overlap the roles work at the same time, and the slowest decides.
"""

import math
from dataclasses import dataclass

ROLES = ("rollout", "reward", "learner")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of one member for one reply, and seconds of a weight sync."""

    rollout: float
    reward: float
    learner: float
    sync: float
    tokens: float = 0.0
    """Of a reply, mean."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Members."""

    rollout: int
    reward: int
    learner: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """An iteration as it should go."""

    sizes: Sizes
    overlapped: bool
    busy: dict[str, float]
    """Seconds that each role works, by role; the sync counts to the learner."""
    seconds: float
    """Of the whole iteration."""

    @property
    def bottleneck(self) -> str:
        """The role that works longest: with overlap the others wait for it."""
        return max(ROLES, key=self.busy.__getitem__)

    def idle(self, role: str) -> float:
        """Share of the iteration in which a role has nothing to do."""
        return max(0.0, 1.0 - self.busy[role] / self.seconds)


def forecast(rates: Rates, sizes: Sizes, replies: int, *, overlapped: bool) -> Forecast:
    """replies: of an iteration."""
    busy = {role: getattr(rates, role) * replies / getattr(sizes, role) for role in ROLES}
    busy["learner"] += rates.sync
    if overlapped:  # workers take new weights between two replies, so that the sync is theirs too
        seconds = max(busy["rollout"] + rates.sync, busy["reward"], busy["learner"])
    else:
        seconds = sum(busy.values())
    return Forecast(sizes=sizes, overlapped=overlapped, busy=busy, seconds=seconds)


def smallest(rates: Rates, replies: int, learner: int, prompts: int) -> Sizes:
    """The fewest workers and servers that keep a learner of so many ranks busy while roles overlap.

    prompts: of an iteration, the most members that have work.
    """
    step = rates.learner * replies / learner

    def needed(rate: float) -> int:
        # What was measured is no better than a percent: no member more for less than that.
        return min(prompts, max(1, math.ceil(0.99 * rate * replies / step))) if step else prompts

    return Sizes(rollout=needed(rates.rollout), reward=needed(rates.reward), learner=learner)
