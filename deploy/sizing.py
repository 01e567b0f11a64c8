"""What a member of each role does in a second, from the records of a run.

How many members of each role a job needs, from what one of them does in a second. Pure.

A role's work is taken to divide evenly among its members: time = rate · replies / members. That holds until a member
has a single group, which cannot be divided, so no role is given more members than there are prompts. Without overlap an
iteration is the sum of its phases; with overlap the roles work at the same time, and the slowest decides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.compute as pc

from common.errors import InputError
from configs.schema import Config
from observability.run_directory import numbered, read_events, read_iterations, read_replies
from speech.types import ReplyOrigin

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


def smallest_sizes(rates: Rates, replies: int, learner: int, prompts: int) -> Sizes:
    """The fewest workers and servers that keep a learner of so many ranks busy while roles overlap.

    prompts: of an iteration, the most members that have work.
    """
    step = rates.learner * replies / learner

    def needed(rate: float) -> int:
        # What was measured is no better than a percent: no member more for less than that.
        return min(prompts, max(1, math.ceil(0.99 * rate * replies / step))) if step else prompts

    return Sizes(rollout=needed(rates.rollout), reward=needed(rates.reward), learner=learner)


WARM = 1
"""Iterations at the start of a run that are left out: some things happen then for the first time."""


Members = Callable[[int], int]
"""Of a role, by iteration."""


def measured_rates(run: Path, config: Config) -> Rates:
    """Rates from a run's iterations. config: the run's own. Raises InputError when none of them can tell."""
    rows = [row for row in read_iterations(run).to_pylist() if row["replies"]]
    if not rows:
        raise InputError(f"{run} has no iteration with replies; name another run, or leave --run out")
    return rates_of_run(rows[WARM:] or rows, _workers(run, config), _servers(run, config), config.learner.ranks)


def rates_of_run(rows: Sequence[Mapping[str, Any]], workers: Members, servers: Members, ranks: int) -> Rates:
    """Medians over rows of iterations.parquet, of runs with and without overlap."""

    def working(row: Mapping[str, Any], role: str) -> float:
        """Seconds that a member of a pool worked, mean: phases say who is waited for, and roles overlap."""
        return (1.0 - row[f"idle_{role}"]) * row["seconds_total"]

    def each(seconds: Callable[[Mapping[str, Any]], float]) -> float:
        return median(seconds(row) / row["replies"] for row in rows)

    return Rates(
        rollout=each(lambda row: working(row, "rollout") * workers(row["iteration"])),
        reward=each(lambda row: working(row, "reward") * servers(row["iteration"])),
        learner=each(lambda row: row["seconds_learn"] * ranks),
        sync=median(row["seconds_sync"] for row in rows),
        tokens=each(lambda row: row["tokens_text"] + row["tokens_speech"]),
    )


def _workers(run: Path, config: Config) -> Members:
    """Rollout workers: those that sampled the replies that are kept."""
    kept = set(numbered(run, "replies"))

    def at(iteration: int) -> int:
        if iteration not in kept:
            return config.rollout.workers
        names = set(pc.unique(read_replies(run, iteration)["worker"]).to_pylist())
        return len(names - {ReplyOrigin.RECORDED, ReplyOrigin.DEMONSTRATION}) or config.rollout.workers

    return at


def _servers(run: Path, config: Config) -> Members:
    """Reward servers: as configured, and as they were changed (`duet scale`)."""
    changes = [
        (event["iteration"], event["value"]["reward"])
        for event in read_events(run)
        if event["kind"] == "scale" and "reward" in event.get("value", {})
    ]
    return lambda iteration: next((n for since, n in reversed(changes) if since <= iteration), config.reward.servers)
