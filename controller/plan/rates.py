"""What a member of each role does in a second, from the records of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.compute as pc

from controller.config import Config
from controller.plan.sizing import Rates
from controller.records import numbered, read_events, read_iterations, read_replies
from controller.replies import DEMONSTRATION, RECORDED
from speech.errors import InputError

WARM = 1
"""Iterations at the start of a run that are left out: some things happen then for the first time."""
Members = Callable[[int], int]
"""Of a role, by iteration."""


def measured(run: Path, config: Config) -> Rates:
    """Rates from a run's iterations. config: the run's own. Raises InputError when none of them can tell."""
    rows = [row for row in read_iterations(run).to_pylist() if row["replies"]]
    if not rows:
        raise InputError(f"{run} has no iteration with replies; name another run, or leave --run out")
    return rates(rows[WARM:] or rows, _workers(run, config), _servers(run, config), config.learner.ranks)


def rates(rows: Sequence[Mapping[str, Any]], workers: Members, servers: Members, ranks: int) -> Rates:
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
        return len(names - {RECORDED, DEMONSTRATION}) or config.rollout.workers

    return at


def _servers(run: Path, config: Config) -> Members:
    """Reward servers: as configured, and as they were changed (`duet scale`)."""
    changes = [
        (event["iteration"], event["value"]["reward"])
        for event in read_events(run)
        if event["kind"] == "scale" and "reward" in event.get("value", {})
    ]
    return lambda iteration: next((n for since, n in reversed(changes) if since <= iteration), config.reward.servers)
