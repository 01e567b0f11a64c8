"""The metrics that are read at every scrape: how the run stands at that moment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.replica_state import PoolStatus, ReplicaState
from observability.iteration import PHASES
from observability.metrics.metric import FAULTS, OTHER, MetricSpec, Reading


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How the loop stands."""

    phase: str
    """Of the iteration; empty outside of one."""
    seconds: float
    """In that phase, or since the last one."""
    pools: Mapping[str, PoolStatus]
    """By role."""
    versions: Mapping[str, int | None]
    """Of the weights, by role; of rollout workers the oldest."""


@dataclass(frozen=True, kw_only=True)
class LiveMetrics:
    """How a run stands."""

    iterations: int
    """That the run is to do."""
    progress: float
    """When it last came a step further, seconds since the epoch."""
    faults: Mapping[str, int]
    """Events by kind of `FAULTS`."""
    own_seconds: float
    """Spent on metrics."""
    loop: RunStatus | None
    """None before there is one."""


def _of_loop(read: Callable[[RunStatus], Reading]) -> Callable[[LiveMetrics], Reading]:
    return lambda s: read(s.loop) if s.loop is not None else None


def _of_pools(read: Callable[[PoolStatus], float]) -> Callable[[LiveMetrics], Reading]:
    return _of_loop(lambda loop: {role: read(status) for role, status in loop.pools.items()})


def _members(loop: RunStatus) -> Reading:
    return {
        (role, str(life)): status.replicas.get(life, 0) for role, status in loop.pools.items() for life in ReplicaState
    }


def _work(loop: RunStatus) -> Reading:
    return {
        (role, work): number
        for role, status in loop.pools.items()
        if role != "learner"  # whose ranks work together
        for work, number in (("lent", status.in_flight), ("waiting", status.queued))
    }


def _phase(loop: RunStatus) -> Reading:
    return {phase: phase == (loop.phase or OTHER) for phase in (*PHASES, OTHER)}


RUN: tuple[MetricSpec[LiveMetrics], ...] = (
    MetricSpec(
        "duet_iterations_wanted", "gauge", (), "iterations", "Iterations that the run is to do.",
        lambda s: s.iterations,
    ),
    MetricSpec(
        "duet_last_progress_timestamp_seconds", "gauge", (), "seconds since the epoch",
        "When an iteration, or another stage of the run, last came to its end.", lambda s: s.progress,
    ),
    MetricSpec(
        "duet_phase_now", "gauge", ("phase",), "", "1 for the phase that the run is in, 0 for the others.",
        _of_loop(_phase),
    ),
    MetricSpec(
        "duet_phase_now_seconds", "gauge", (), "seconds", "Time in that phase so far.",
        _of_loop(lambda loop: loop.seconds),
    ),
    MetricSpec(
        "duet_faults_total", "counter", ("kind",), "events", "Events that say that something is not as it should be.",
        lambda s: {kind: s.faults.get(kind, 0) for kind in FAULTS},
    ),
    MetricSpec(
        "duet_metrics_seconds_total", "counter", (), "seconds", "Time that the controller spent on metrics.",
        lambda s: s.own_seconds,
    ),
)  # fmt: skip
POOLS: tuple[MetricSpec[LiveMetrics], ...] = (
    MetricSpec("duet_members", "gauge", ("role", "state"), "members", "Members of the pools.", _of_loop(_members)),
    MetricSpec(
        "duet_members_wanted", "gauge", ("role",), "members", "Members that there are to be.",
        _of_pools(lambda c: c.target),
    ),
    MetricSpec(
        "duet_restarts_total", "counter", ("role",), "members",
        "Members started in the place of one that died; of the learner, whose ranks live and die together, groups.",
        _of_pools(lambda c: c.restarts),
    ),
    MetricSpec(
        "duet_work_items", "gauge", ("role", "work"), "", "Prompts to be sampled, replies to be rated; or being so.",
        _of_loop(_work),
    ),
    MetricSpec(
        "duet_weight_version", "gauge", ("role",), "", "Version of the weights; of rollout workers, the oldest.",
        _of_loop(lambda loop: loop.versions),
    ),
)  # fmt: skip
