"""The learner group: all ranks as one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.waiting import gather
from learner.rank import LearnerRank, RankSettings
from learner.rows import Item, Row, split
from learner.step import Objective
from learner.tally import Tally
from speech.families import Family

CLOSE_SECONDS = 10.0
"""Time for ranks to clean up."""


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    ranks: int
    cpus: float
    """Ray CPUs of each rank."""
    gpus: float
    start_seconds: float
    step_seconds: float
    """Deadline for one step, a weight publication or a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A version of the weights, ready to be fetched, with the learner's own log-probabilities of the probe."""

    version: int
    path: Path
    size: int
    """Bytes."""
    probe_logps: list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a step did, over the whole batch."""

    tally: Tally
    gradient_norm: float
    learning_rate: float


class LearnerGroup:
    """Learner ranks by name. Version 0 is the checkpoint; every step makes the next."""

    def __init__(self, settings: GroupSettings, rank: RankSettings, family: Family, objective: Objective) -> None:
        self._settings, self._rank = settings, rank
        self._version = 0
        remote = ray.remote(LearnerRank).options(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(rank.threads)}},
        )
        self._ranks: dict[str, Any] = {
            f"learner-{index}": remote.remote(index, settings.ranks, rank, family, objective)
            for index in range(settings.ranks)
        }

    @property
    def version(self) -> int:
        return self._version

    def start(self) -> int:
        """Waits until the group has met and every rank holds the model. Returns the number of parameters."""
        first, leader = next(iter(self._ranks.items()))
        deadline = self._settings.start_seconds
        host, port = gather({first: leader.address.remote()}, deadline, "starting")[first]
        answers = {name: rank.connect.remote(host, port) for name, rank in self._ranks.items()}
        return gather(answers, deadline, "joining the learner group")[first]

    def step(self, items: list[Item], mix: float) -> Learned:
        """One optimiser step on preference and anchor items together."""
        ranks = len(self._ranks)
        anchors = [item for item in items if isinstance(item, Row) and item.anchor_weight]
        others = [item for item in items if not (isinstance(item, Row) and item.anchor_weight)]
        shares: list[list[Item]] = [[] for _ in range(ranks)]
        for kind in (anchors, others):
            # The remainder of each kind goes to the rank that has least so far.
            shares.sort(key=len)
            for share, part in zip(shares, split(kind, ranks), strict=True):
                share.extend(part)
        fewest = min(map(len, shares))
        most = max(sum(len(item.rows) for item in share) for share in shares)
        if fewest == 0:
            raise ValueError(f"{len(items)} items cannot be split over {ranks} learner ranks")
        micro_batches = min(fewest, -(-most // self._rank.micro_batch_rows))
        answers = {
            name: rank.step.remote(share, micro_batches, mix)
            for (name, rank), share in zip(self._ranks.items(), shares, strict=True)
        }
        reports = gather(answers, self._settings.step_seconds, "taking a step")
        tally = Tally()
        for report in reports.values():
            tally.merge(report.tally)
        self._version += 1
        first = next(iter(reports.values()))
        return Learned(tally=tally, gradient_norm=first.gradient_norm, learning_rate=first.learning_rate)

    def publish(self, probe: list[np.ndarray]) -> Published:
        """Writes the newest weights where workers can fetch them."""
        answers = {name: rank.publish.remote(self._version, probe) for name, rank in self._ranks.items()}
        reports = gather(answers, self._settings.step_seconds, "publishing weights")
        path, size, logps = next(report for report in reports.values() if report is not None)
        return Published(version=self._version, path=path, size=size, probe_logps=logps)

    def save(self, directory: Path) -> None:
        answers = {name: rank.save.remote(directory) for name, rank in self._ranks.items()}
        gather(answers, self._settings.step_seconds, "saving a checkpoint")

    def stop(self) -> None:
        """Ends all ranks, whatever state they are in; those that still answer clean up behind them."""
        answers = {name: rank.close.remote() for name, rank in self._ranks.items()}
        try:
            gather(answers, CLOSE_SECONDS, "closing")
        finally:
            for rank in self._ranks.values():
                ray.kill(rank)
