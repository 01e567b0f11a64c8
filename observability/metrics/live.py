"""Metrics read at every scrape: the current state of the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.replica_state import PoolStatus, ReplicaState
from observability.iteration import PHASES
from observability.metrics.metric import ERROR_EVENTS, OTHER, TASK_STATES, MetricSpec, Reading


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Current state of the training loop."""

    phase: str
    """Phase of the iteration; empty between iterations."""
    seconds: float
    """Seconds in that phase, or since the last phase ended."""
    pools: Mapping[str, PoolStatus]
    """Pool status by role."""
    versions: Mapping[str, int | None]
    """Weight version by role; the oldest one for rollout workers."""


@dataclass(frozen=True, kw_only=True)
class LiveMetrics:
    """Current state of a run."""

    iterations: int
    """Target number of iterations."""
    progress: float
    """Time of the last progress, in seconds since the epoch."""
    errors: Mapping[str, int]
    """Number of events by kind of `ERROR_EVENTS`."""
    own_seconds: float
    """Seconds spent on metrics."""
    loop: RunStatus | None
    """None before the loop starts."""


def _of_loop(read: Callable[[RunStatus], Reading]) -> Callable[[LiveMetrics], Reading]:
    return lambda s: read(s.loop) if s.loop is not None else None


def _of_pools(read: Callable[[PoolStatus], float]) -> Callable[[LiveMetrics], Reading]:
    return _of_loop(lambda loop: {role: read(pool) for role, pool in loop.pools.items()})


def _replicas(loop: RunStatus) -> Reading:
    return {
        (role, str(state)): pool.replicas.get(state, 0) for role, pool in loop.pools.items() for state in ReplicaState
    }


def _tasks(loop: RunStatus) -> Reading:
    return {
        (role, state): number
        for role, pool in loop.pools.items()
        if role != "learner"  # its ranks share every step
        for state, number in zip(TASK_STATES, (pool.in_flight, pool.queued), strict=True)
    }


def _phase(loop: RunStatus) -> Reading:
    return {phase: phase == (loop.phase or OTHER) for phase in (*PHASES, OTHER)}


RUN: tuple[MetricSpec[LiveMetrics], ...] = (
    MetricSpec(
        "duet_target_iterations", "gauge", (), "iterations", "Target number of iterations.",
        lambda s: s.iterations,
    ),
    MetricSpec(
        "duet_last_progress_timestamp_seconds", "gauge", (), "seconds since the epoch",
        "Time at which an iteration, or another stage of the run, last finished.", lambda s: s.progress,
    ),
    MetricSpec(
        "duet_phase", "gauge", ("phase",), "", "1 for the current phase, 0 for the others.",
        _of_loop(_phase),
    ),
    MetricSpec(
        "duet_phase_elapsed_seconds", "gauge", (), "seconds", "Time spent in the current phase so far.",
        _of_loop(lambda loop: loop.seconds),
    ),
    MetricSpec(
        "duet_errors_total", "counter", ("kind",), "events", "Error events of `events.jsonl`.",
        lambda s: {kind: s.errors.get(kind, 0) for kind in ERROR_EVENTS},
    ),
    MetricSpec(
        "duet_metrics_seconds_total", "counter", (), "seconds", "Time that the controller spent on metrics.",
        lambda s: s.own_seconds,
    ),
)  # fmt: skip
POOLS: tuple[MetricSpec[LiveMetrics], ...] = (
    MetricSpec("duet_replicas", "gauge", ("role", "state"), "replicas", "Replicas of a pool.", _of_loop(_replicas)),
    MetricSpec(
        "duet_replicas_target", "gauge", ("role",), "replicas", "Target number of replicas.",
        _of_pools(lambda pool: pool.target),
    ),
    MetricSpec(
        "duet_restarts_total", "counter", ("role",), "replicas",
        "Restarts of replicas; for the learner, restarts of the whole group.",
        _of_pools(lambda pool: pool.restarts),
    ),
    MetricSpec(
        "duet_tasks", "gauge", ("role", "state"), "tasks", "Tasks of a pool: prompts to sample, replies to score.",
        _of_loop(_tasks),
    ),
    MetricSpec(
        "duet_weight_version", "gauge", ("role",), "", "Weight version; for rollout workers, the oldest one.",
        _of_loop(lambda loop: loop.versions),
    ),
)  # fmt: skip
