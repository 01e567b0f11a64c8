"""The metrics that are read at every scrape: how the run stands at that moment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.replica_state import Census, Life
from observability.iteration import PHASES
from observability.metrics.metric import FAULTS, OTHER, Metric, Reading


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the loop stands."""

    phase: str
    """Of the iteration; empty outside of one."""
    seconds: float
    """In that phase, or since the last one."""
    pools: Mapping[str, Census]
    """By role."""
    versions: Mapping[str, int | None]
    """Of the weights, by role; of rollout workers the oldest."""


@dataclass(frozen=True, kw_only=True)
class State:
    """How a run stands."""

    iterations: int
    """That the run is to do."""
    progress: float
    """When it last came a step further, seconds since the epoch."""
    faults: Mapping[str, int]
    """Events by kind of `FAULTS`."""
    own_seconds: float
    """Spent on metrics."""
    loop: Standing | None
    """None before there is one."""


def _of_loop(read: Callable[[Standing], Reading]) -> Callable[[State], Reading]:
    return lambda s: read(s.loop) if s.loop is not None else None


def _of_pools(read: Callable[[Census], float]) -> Callable[[State], Reading]:
    return _of_loop(lambda loop: {role: read(census) for role, census in loop.pools.items()})


def _members(loop: Standing) -> Reading:
    return {(role, str(life)): census.members.get(life, 0) for role, census in loop.pools.items() for life in Life}


def _work(loop: Standing) -> Reading:
    return {
        (role, work): number
        for role, census in loop.pools.items()
        if role != "learner"  # whose ranks work together
        for work, number in (("lent", census.lent), ("waiting", census.waiting))
    }


def _phase(loop: Standing) -> Reading:
    return {phase: phase == (loop.phase or OTHER) for phase in (*PHASES, OTHER)}


RUN: tuple[Metric[State], ...] = (
    Metric(
        "duet_iterations_wanted", "gauge", (), "iterations", "Iterations that the run is to do.",
        lambda s: s.iterations,
    ),
    Metric(
        "duet_last_progress_timestamp_seconds", "gauge", (), "seconds since the epoch",
        "When an iteration, or another stage of the run, last came to its end.", lambda s: s.progress,
    ),
    Metric(
        "duet_phase_now", "gauge", ("phase",), "", "1 for the phase that the run is in, 0 for the others.",
        _of_loop(_phase),
    ),
    Metric(
        "duet_phase_now_seconds", "gauge", (), "seconds", "Time in that phase so far.",
        _of_loop(lambda loop: loop.seconds),
    ),
    Metric(
        "duet_faults_total", "counter", ("kind",), "events", "Events that say that something is not as it should be.",
        lambda s: {kind: s.faults.get(kind, 0) for kind in FAULTS},
    ),
    Metric(
        "duet_metrics_seconds_total", "counter", (), "seconds", "Time that the controller spent on metrics.",
        lambda s: s.own_seconds,
    ),
)  # fmt: skip
POOLS: tuple[Metric[State], ...] = (
    Metric("duet_members", "gauge", ("role", "state"), "members", "Members of the pools.", _of_loop(_members)),
    Metric(
        "duet_members_wanted", "gauge", ("role",), "members", "Members that there are to be.",
        _of_pools(lambda c: c.wanted),
    ),
    Metric(
        "duet_restarts_total", "counter", ("role",), "members",
        "Members started in the place of one that died; of the learner, whose ranks live and die together, groups.",
        _of_pools(lambda c: c.restarts),
    ),
    Metric(
        "duet_work_items", "gauge", ("role", "work"), "", "Prompts to be sampled, replies to be rated; or being so.",
        _of_loop(_work),
    ),
    Metric(
        "duet_weight_version", "gauge", ("role",), "", "Version of the weights; of rollout workers, the oldest.",
        _of_loop(lambda loop: loop.versions),
    ),
)  # fmt: skip
