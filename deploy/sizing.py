"""Rates of one actor of each role from the records of a run, and the pool sizes that follow.

The model assumes that work divides evenly: time = rate · replies / actors. A group of replies cannot be divided, so no
role gets more actors than there are prompts. Without overlap an iteration takes the sum of its phases. With overlap the
roles work at the same time, and the slowest decides.
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
    """Seconds of one actor for one reply, and seconds of a weight sync."""

    rollout: float
    reward: float
    learner: float
    sync: float
    tokens: float = 0.0
    """Mean length of a reply."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Actors of each role."""

    rollout: int
    reward: int
    learner: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted times of an iteration."""

    sizes: Sizes
    overlapped: bool
    busy: dict[str, float]
    """Seconds of work by role. The sync counts for the learner."""
    seconds: float
    """Duration of the iteration."""

    @property
    def bottleneck(self) -> str:
        """The role that works longest. With overlap the others wait for it."""
        return max(ROLES, key=self.busy.__getitem__)

    def idle(self, role: str) -> float:
        """Return the share of the iteration in which a role is idle."""
        return max(0.0, 1.0 - self.busy[role] / self.seconds)


def forecast(rates: Rates, sizes: Sizes, replies: int, *, overlapped: bool) -> Forecast:
    """Predict an iteration with this number of replies."""
    busy = {role: getattr(rates, role) * replies / getattr(sizes, role) for role in ROLES}
    busy["learner"] += rates.sync
    if overlapped:  # workers stop for the sync between replies, so it is part of their time
        seconds = max(busy["rollout"] + rates.sync, busy["reward"], busy["learner"])
    else:
        seconds = sum(busy.values())
    return Forecast(sizes=sizes, overlapped=overlapped, busy=busy, seconds=seconds)


def smallest_sizes(rates: Rates, replies: int, learner: int, prompts: int) -> Sizes:
    """Return the fewest workers and servers that keep the learner busy while roles overlap.

    Args:
        rates: Measured rates.
        replies: Replies of an iteration.
        learner: Number of learner ranks.
        prompts: Prompts of an iteration, the greatest useful size of a pool.
    """
    step = rates.learner * replies / learner

    def needed(rate: float) -> int:
        # Measurements are accurate to about 1 %, so a smaller gap does not justify another actor.
        return min(prompts, max(1, math.ceil(0.99 * rate * replies / step))) if step else prompts

    return Sizes(rollout=needed(rates.rollout), reward=needed(rates.reward), learner=learner)


NUM_WARMUP_ITERATIONS = 1
"""Iterations at the start of a run that are not measured."""


PoolSize = Callable[[int], int]
"""Returns the size of a pool in an iteration."""


def measured_rates(run: Path, config: Config) -> Rates:
    """Return the rates from the iterations of a run. Raises InputError if none has replies."""
    rows = [row for row in read_iterations(run).to_pylist() if row["replies"]]
    if not rows:
        raise InputError(f"{run} has no iteration with replies; name another run, or omit --run")
    return rates_of_run(
        rows[NUM_WARMUP_ITERATIONS:] or rows, _workers(run, config), _servers(run, config), config.learner.num_workers
    )


def rates_of_run(rows: Sequence[Mapping[str, Any]], workers: PoolSize, servers: PoolSize, ranks: int) -> Rates:
    """Return medians over rows of iterations.parquet. `workers`, `servers`: pool sizes by iteration."""

    def busy_seconds(row: Mapping[str, Any], role: str) -> float:
        """Return the mean seconds of work per actor. Phases would count waiting time where roles overlap."""
        return (1.0 - row[f"idle_{role}"]) * row["seconds_total"]

    def per_reply(seconds: Callable[[Mapping[str, Any]], float]) -> float:
        return median(seconds(row) / row["replies"] for row in rows)

    return Rates(
        rollout=per_reply(lambda row: busy_seconds(row, "rollout") * workers(row["iteration"])),
        reward=per_reply(lambda row: busy_seconds(row, "reward") * servers(row["iteration"])),
        learner=per_reply(lambda row: row["seconds_learn"] * ranks),
        sync=median(row["seconds_sync"] for row in rows),
        tokens=per_reply(lambda row: row["tokens_text"] + row["tokens_speech"]),
    )


def _workers(run: Path, config: Config) -> PoolSize:
    """Return the number of rollout workers, counted in the recorded replies."""
    recorded = set(numbered(run, "replies"))

    def at(iteration: int) -> int:
        if iteration not in recorded:
            return config.rollout.num_workers
        names = set(pc.unique(read_replies(run, iteration)["worker"]).to_pylist())
        return len(names - {ReplyOrigin.RECORDED, ReplyOrigin.DEMONSTRATION}) or config.rollout.num_workers

    return at


def _servers(run: Path, config: Config) -> PoolSize:
    """Return the number of reward servers: as configured, or as set by `duet scale`."""
    changes = [
        (event["iteration"], event["value"]["reward"])
        for event in read_events(run)
        if event["kind"] == "scale" and "reward" in event.get("value", {})
    ]
    return lambda iteration: next(
        (n for since, n in reversed(changes) if since <= iteration), config.reward.num_servers
    )
