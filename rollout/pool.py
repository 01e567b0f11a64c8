"""The pool of rollout workers: hands out prompts, passes on weights, and refuses a worker that does not hold them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.asking import CrewSettings, Renewal
from cluster.crew import Crew
from cluster.fleet import UP
from cluster.places import Place
from cluster.pool import Pool
from rollout.engine import EngineSettings, SamplingSettings
from rollout.worker import Probe, RolloutWorker, SyncReport
from speech.families import Family
from speech.records import Group, Prompt


class StaleWeights(RuntimeError):
    """A worker does not compute what the learner computes, although it took the weights."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    workers: int
    needs: Mapping[str, float]
    """Ray's resources of each worker."""
    start_seconds: float
    """Deadline for engines to start."""
    sample_seconds: float
    """Deadline for a worker's share of a batch of replies."""
    sync_seconds: float
    """Deadline for taking new weights."""
    probe_limit: float
    """Largest difference of a log-probability between worker and learner on the probe, nats."""
    beat_seconds: float
    """How long a worker may give no sign of life."""
    metrics_host: str
    """Where metrics are served: see `rollout.counting`."""


class RolloutPool(Pool):
    """Rollout workers by name. Start with `start`, then `update` before the first `sample`.

    A worker that dies is replaced, and what it was sampling is sampled by another: the seeds go with the prompts, so
    the replies are the same whoever draws them.
    """

    def __init__(
        self, settings: PoolSettings, engine: EngineSettings, family: Family, seed: int, tell: Callable[..., None]
    ) -> None:
        """tell: takes events, a kind and fields."""
        self._settings = settings
        self._first: tuple[list[Prompt], int, SamplingSettings] | None = None
        self._reports: dict[tuple[str, int], SyncReport] = {}
        """The newest by name and incarnation of a worker."""
        home = ray.util.get_node_ip_address()
        # torch reads its thread count when it is imported, before the worker's own code runs.
        environment = {"env_vars": {"OMP_NUM_THREADS": str(engine.threads)}}

        def make(name: str, place: Place) -> Any:
            remote = ray.remote(RolloutWorker).options(runtime_env=environment, **place.options())
            return remote.remote(name, engine, family, seed + int(name.rpartition("-")[2]), settings.metrics_host, home)

        self._crew = Crew(
            CrewSettings(
                role="rollout",
                members=settings.workers,
                start_seconds=settings.start_seconds,
                renew_seconds=settings.sync_seconds,
                work_seconds=settings.sample_seconds,
                beat_seconds=settings.beat_seconds,
                renewed=True,
                needs=settings.needs,
            ),
            make=make,
            warm=lambda worker: worker.warm_up.remote(*self._first),
            tell=tell,
        )

    def start(self, prompts: list[Prompt], group_size: int, sampling: SamplingSettings, *, strict: bool = True) -> None:
        """Waits until every engine has started and sampled once. strict: whether one that fails ends the start."""
        self._first = (prompts, group_size, sampling)
        self._crew.start(strict=strict)

    def sample(
        self, prompts: list[Prompt], group_size: int, sampling: SamplingSettings, seeds: list[int]
    ) -> list[Group]:
        """A group for each prompt, in the order of the prompts. `seeds`, one a prompt, fix the draws."""

        def ask(worker: Any, items: list[int]) -> ray.ObjectRef:
            return worker.sample.remote([prompts[i] for i in items], group_size, sampling, [seeds[i] for i in items])

        return self._crew.work(
            [f"prompt {prompt.id}" for prompt in prompts], ask, f"sampling replies to {len(prompts)} prompts"
        )

    def update(
        self, path: Path, version: int, mix: float | None, probe: Probe, *, strict: bool = False
    ) -> dict[str, SyncReport]:
        """Gives every worker the weights of this version and λ. Raises StaleWeights when a probe does not agree.
        strict: whether a worker that cannot take them is an error, and not replaced."""

        def check(name: str, report: SyncReport) -> None:
            check_probe(name, report, version, self._settings.probe_limit)
            self._reports[name, self._crew.fleet.members[name].incarnation] = report

        renewal = Renewal(
            call=lambda worker: worker.update.remote(path, version, mix, probe),
            check=check,
            doing=f"taking weights {version}",
        )
        return self._crew.renew(renewal, strict=strict)

    @property
    def metrics(self) -> dict[str, str]:
        """Where workers that are up serve their engines' metrics (`rollout.counting`), by name; may be asked from
        another thread."""
        return {name: report.metrics for name, report in self._up().items() if report.metrics is not None}

    @property
    def oldest_version(self) -> int | None:
        """Of the weights that a worker which is up was last seen to hold; may be asked from another thread."""
        return min((report.version for report in self._up().values()), default=None)

    def _up(self) -> dict[str, SyncReport]:
        up = [member for member in list(self._crew.fleet.members.values()) if member.life in UP]
        found = {member.name: self._reports.get((member.name, member.incarnation)) for member in up}
        return {name: report for name, report in found.items() if report is not None}


def check_probe(name: str, report: SyncReport, version: int, limit: float) -> None:
    """Raises StaleWeights when a worker has other weights than it was given, or is further than `limit` from the
    learner."""
    if report.version != version:
        raise StaleWeights(f"{name} says that it holds weights {report.version}; it was given {version}")
    if not report.probe_gap <= limit:  # also catches not-a-number
        raise StaleWeights(
            f"{name} does not hold weights {report.version}: its log-probabilities differ from the learner's by "
            f"{report.probe_gap:.3g} on the probe, allowed is {limit:.0e}"
        )
