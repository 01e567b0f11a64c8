"""The pool of rollout workers: hands out prompts, passes on weights, and refuses a worker that does not hold them."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray

from cluster.waiting import gather
from rollout.engine import EngineSettings, SamplingSettings
from rollout.worker import Probe, RolloutWorker, SyncReport
from speech.families import Family
from speech.records import Group, Prompt


class StaleWeights(RuntimeError):
    """A worker does not compute what the learner computes, although it took the weights."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    workers: int
    cpus: float
    """Ray CPUs of each worker."""
    gpus: float
    start_seconds: float
    """Deadline for engines to start."""
    sample_seconds: float
    """Deadline for a batch of replies."""
    sync_seconds: float
    """Deadline for taking new weights."""
    probe_limit: float
    """Largest difference of a log-probability between worker and learner on the probe, nats."""


class RolloutPool:
    """Rollout workers by name. Start with `start`, then `update` before the first `sample`."""

    def __init__(self, settings: PoolSettings, engine: EngineSettings, family: Family, seed: int) -> None:
        self._settings = settings
        remote = ray.remote(RolloutWorker).options(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            # torch reads its thread count when it is imported, before the worker's own code runs.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(engine.threads)}},
        )
        names = [f"rollout-{index}" for index in range(settings.workers)]
        self._workers: dict[str, Any] = {
            name: remote.remote(name, engine, family, seed + index) for index, name in enumerate(names)
        }

    @property
    def names(self) -> list[str]:
        return list(self._workers)

    def start(self, prompts: list[Prompt], group_size: int, sampling: SamplingSettings) -> None:
        """Waits until every engine has started and sampled once."""
        answers = {n: w.warm_up.remote(prompts, group_size, sampling) for n, w in self._workers.items()}
        gather(answers, self._settings.start_seconds, "starting the engine")

    def sample(
        self, prompts: list[Prompt], group_size: int, sampling: SamplingSettings, seeds: list[int]
    ) -> list[Group]:
        """A group for each prompt, in the order of the prompts. `seeds`, one a prompt, fix the draws."""
        shares = _shares(len(prompts), len(self._workers))
        answers = {
            name: worker.sample.remote(prompts[share], group_size, sampling, seeds[share])
            for (name, worker), share in zip(self._workers.items(), shares, strict=True)
            if share.start < share.stop
        }
        results = gather(answers, self._settings.sample_seconds, f"sampling replies to {len(prompts)} prompts")
        return [group for groups in results.values() for group in groups]

    def update(self, path: Path, version: int, mix: float | None, probe: Probe) -> dict[str, SyncReport]:
        """Gives every worker the weights of this version and λ. Raises StaleWeights when a probe does not agree."""
        answers = {n: w.update.remote(path, version, mix, probe) for n, w in self._workers.items()}
        reports = gather(answers, self._settings.sync_seconds, f"taking weights {version}")
        check_probes(reports, self._settings.probe_limit)
        return reports

    def stop(self) -> None:
        for worker in self._workers.values():
            ray.kill(worker)


def check_probes(reports: dict[str, SyncReport], limit: float) -> None:
    """Raises StaleWeights naming the first worker that is further than `limit` from the learner."""
    for name, report in reports.items():
        if not report.probe_gap <= limit:  # also catches not-a-number
            raise StaleWeights(
                f"{name} does not hold weights {report.version}: its log-probabilities differ from the learner's by "
                f"{report.probe_gap:.3g} on the probe, allowed is {limit:.0e}"
            )


def _shares(count: int, parts: int) -> list[slice]:
    """Contiguous shares that differ by at most one."""
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(low, high) for low, high in pairwise(bounds)]
