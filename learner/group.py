"""What ranks still owe, and which of them have died of it.

The learner group: all ranks as one.
"""

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from cluster.placement import Placement, missing_resources
from cluster.post_mortem import describe
from cluster.replica_state import PoolStatus, ReplicaState
from cluster.stall_watchdog import PendingCall
from cluster.waiting import ActorFailed, CallTimeout, gather
from learner.batch_dump import BatchDump, write_batch
from learner.checkpoint import CheckpointManifest, check_checkpoint
from learner.config import LearnerConfig, Objective
from learner.micro_batches import Item, micro_batches, split
from learner.rank import LearnerRank
from learner.step_metrics import StepMetrics, StepReport
from speech.families import Family
from weight_sync.update import WeightUpdate


@dataclass(frozen=True, kw_only=True)
class PendingCalls:
    """Something that all ranks were asked to do together."""

    answers: dict[str, ray.ObjectRef]
    deadline: float
    """In the clock of `time.monotonic`."""

    def settled(self) -> bool:
        """Whether nobody has to wait: all ranks have answered, one has failed, or it is too late."""
        if time.monotonic() >= self.deadline:
            return True
        answers = list(self.answers.values())
        answered, others = ray.wait(answers, num_returns=len(answers), timeout=0)
        return not others or any(map(_failed, answered))

    @property
    def seconds(self) -> float:
        """Until the deadline."""
        return max(0.0, self.deadline - time.monotonic())


def _failed(answer: ray.ObjectRef) -> bool:
    """Of one that is there."""
    try:
        ray.get(answer)
    except RayError:
        return True
    return False


def done(answer: ray.ObjectRef) -> bool:
    return bool(ray.wait([answer], timeout=0)[0])


def dead(answers: dict[str, ray.ObjectRef], seconds: float) -> dict[str, str]:
    """Ranks that died, with the reason. The search ends with the first that is found, or when all have answered."""
    deadline = time.monotonic() + seconds
    while True:
        found = {}
        for name, answer in answers.items():
            if done(answer):
                try:
                    ray.get(answer)
                except RayTaskError:
                    continue
                except RayError as error:
                    found[name] = str(describe(error))
        pending = [answer for answer in answers.values() if not done(answer)]
        if found or not pending or time.monotonic() >= deadline:
            return found
        ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))


CLOSE_SECONDS = 10.0
"""Time for ranks to clean up."""


DEATH_SECONDS = 5.0
"""How long after a rank's error the death of another, which may have caused it, can become known."""


STEPPING = "taking a step"


DELIVERING = "broadcasting weights"


class LearnerLost(RuntimeError):
    """A rank died, or did not finish before its deadline. The group is of no more use: `stop` it and start another."""

    def __init__(self, names: list[str], reason: str) -> None:
        super().__init__(reason)
        self.names, self.reason = names, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.names, self.reason)


class NonFiniteStep(ArithmeticError):
    """Too many steps in a row had a loss or a gradient that is not finite. The message says where the last batch is."""


@dataclass(frozen=True, kw_only=True)
class LearnerGroupConfig:
    ranks: int
    start_seconds: float
    """Deadline for a place for all ranks, and for them to be up."""
    step_seconds: float
    """Deadline for one step, a weight publication or a checkpoint."""
    micro_batch_tokens: int
    """Of one rank, at most, where no single item has more."""
    skips_in_a_row: int
    """After so many steps in a row that had to be skipped, the next batch would most likely be no better."""
    faults: Path
    """Folder that takes the last batch of such a row; made when it is needed."""


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """A version of the weights, ready to be fetched, with the learner's own log-probabilities of the probe."""

    parcel: WeightUpdate
    probe_logps: list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, over the whole batch."""

    tally: StepMetrics
    gradient_norm: float | None
    """Before clipping; None when the step was skipped."""
    learning_rate: float
    """Of the step; one that was skipped leaves the schedule where it was."""
    skipped: bool = False
    """Whether weights and optimiser stayed as they were, because something was not finite."""
    not_finite: str | None = None
    """What was not: "loss of learner-1" or "gradient"."""


@dataclass(frozen=True, kw_only=True)
class StepHandle(PendingCalls):
    """A step that has begun."""

    items: list[Item]
    mix: float


class LearnerGroup:
    """Learner ranks by name. Version 0 is the checkpoint; every step makes the next.

    A step that is skipped makes a version too, with the same weights: versions count iterations, and have no gap.

    A rank that dies or is late raises LearnerLost from whatever was asked of the group. An error of the work itself,
    InputError included, is raised as it came.
    """

    def __init__(
        self, settings: LearnerGroupConfig, rank: LearnerConfig, family: Family, objective: Objective, place: Placement
    ) -> None:
        """place: a bundle for each rank. It outlives the group, so that nobody else gets what a dead rank leaves."""
        self._settings, self._rank, self._place = settings, rank, place
        self._version = self._skips = 0
        self._life = ReplicaState.STARTING
        self._doing = ("", 0.0)
        self._folder: Path | None = None
        """Where the weights lie, which a rank that dies cannot remove."""
        self._step: StepHandle | None = None
        self._delivery: PendingCalls | None = None
        self._calls = 0
        self._announced: int | None = None
        """Version that was published last, while the ranks have it."""
        environment = {"env_vars": {"OMP_NUM_THREADS": str(rank.threads)}}
        self._ranks: dict[str, Any] = {
            f"learner-{index}": ray.remote(LearnerRank)
            .options(runtime_env=environment, **place.options(index))
            .remote(index, settings.ranks, rank, family, objective)
            for index in range(settings.ranks)
        }

    @property
    def version(self) -> int:
        return self._version

    def start(self) -> int:
        """Waits until the group has met and every rank holds the model. Returns the number of parameters."""
        first, leader = next(iter(self._ranks.items()))
        deadline = self._settings.start_seconds
        self._doing = ("waiting for a place", time.monotonic())
        if not self._place.wait(deadline):
            self._life = ReplicaState.DEAD
            missing = missing_resources(self._place.resources)
            raise LearnerLost(list(self._ranks), f"{', '.join(self._ranks)} have no place to start: {missing}")
        host, port = self._answers({first: leader.address.remote()}, deadline, "starting")[first]
        answers = {name: rank.connect.remote(host, port) for name, rank in self._ranks.items()}
        parameters = self._answers(answers, deadline, "joining the learner group")[first]
        self._life = ReplicaState.READY
        return parameters

    def step(self, items: list[Item], mix: float) -> StepResult:
        """One optimiser step on preference and anchor items together; raises what `finish` does."""
        self.begin(items, mix)
        return self.finish()

    def begin(self, items: list[Item], mix: float) -> None:
        """Has all ranks take a step. `finish` comes before anything else is asked of the group."""
        shares = split(items, len(self._ranks))
        if not all(shares):
            raise ValueError(f"{len(items)} items cannot be split over {len(self._ranks)} learner ranks")
        count = micro_batches(shares, self._settings.micro_batch_tokens, packing=self._rank.packing)
        answers = {
            name: rank.step.remote(share, count, mix)
            for (name, rank), share in zip(self._ranks.items(), shares, strict=True)
        }
        now = time.monotonic()
        self._step = StepHandle(items=items, mix=mix, answers=answers, deadline=now + self._settings.step_seconds)
        self._doing = (STEPPING, now)

    @property
    def owed(self) -> list[ray.ObjectRef]:
        """Answers about the step that has begun, of ranks that still take it."""
        answers = list(self._step.answers.values()) if self._step is not None else []
        return ray.wait(answers, num_returns=len(answers), timeout=0)[1] if answers else []

    def settled(self) -> bool:
        """Whether `finish` has not to wait: all ranks have answered, one has failed, or it is too late."""
        return self._step is None or self._step.settled()

    def finish(self) -> StepResult:
        """Waits for the end of the step. Raises NotFinite when it had to be skipped, and too many before it."""
        if self._step is None:
            raise RuntimeError("no step has begun")
        step, self._step = self._step, None
        reports = self._answers(step.answers, step.seconds, STEPPING)
        learned = _learned(reports)
        self._version += 1
        self._skips = self._skips + 1 if learned.skipped else 0
        if self._skips >= self._settings.skips_in_a_row:
            self._give_up(
                BatchDump(items=step.items, mix=step.mix, version=self._version, reason=str(learned.not_finite))
            )
        return learned

    def _give_up(self, batch: BatchDump) -> None:
        path = self._settings.faults / f"step-{batch.version:06d}.parquet"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_batch(path, batch)
            kept = f"its batch is in {path} (learner.batch_dump.read_batch)"
        except OSError as error:
            kept = f"its batch could not be kept: {error}"
        raise NonFiniteStep(
            f"{self._skips} steps in a row were skipped, as many as learner.max_consecutive_skips allows: the "
            f"{batch.reason} "
            f"of step {batch.version} is not finite; {kept}"
        )

    def publish(self, probe: list[np.ndarray]) -> PublishResult:
        """Puts the newest weights where workers can fetch them."""
        answers = {name: rank.publish.remote(self._version, probe) for name, rank in self._ranks.items()}
        reports = self._answers(answers, self._settings.step_seconds, "publishing weights")
        parcel, logps = next(report for report in reports.values() if report is not None)
        self._announced = self._version
        self._folder = parcel.path.parent if parcel.path is not None else None
        return PublishResult(parcel=parcel, probe_logps=logps)

    def free(self) -> bool:
        """Whether what was published last can be delivered: the ranks have it still, and do nothing else. Raises what
        befell the delivery before."""
        if self._life != ReplicaState.READY or self._step is not None or self._announced != self._version:
            return False
        if self._delivery is not None and self._delivery.settled():
            delivery, self._delivery = self._delivery, None
            self._answers(delivery.answers, delivery.seconds, DELIVERING)
        return self._delivery is None

    def deliver(self, parcel: WeightUpdate, seats: Sequence[str], seconds: float) -> WeightUpdate:
        """Has all ranks send what was published last, by broadcast, to these. Does not wait: whatever is asked of the
        group comes after it. seconds: longest wait of one for another. Returns the parcel that brings them there."""
        if parcel.call is None:
            raise ValueError("weights that are not broadcast lie where they can be fetched")
        self._calls += 1
        call = replace(parcel.call, number=self._calls, seats=tuple(seats), seconds=seconds)
        answers = {name: rank.deliver.remote(call) for name, rank in self._ranks.items()}
        self._delivery = PendingCalls(answers=answers, deadline=time.monotonic() + self._settings.step_seconds)
        return replace(parcel, call=call)

    def save(self, directory: Path) -> None:
        """Writes a checkpoint into an existing folder (`learner.checkpoint`). The manifest comes last: without it,
        nothing looks whole. Raises OSError; the group can go on after that."""
        answers = {name: rank.save.remote(directory) for name, rank in self._ranks.items()}
        try:
            prints = self._answers(answers, self._settings.step_seconds, "saving a checkpoint")
        except OSError:
            # The folder can be removed now: the others have stopped writing as well.
            ray.wait(list(answers.values()), num_returns=len(answers), timeout=self._settings.step_seconds)
            raise
        CheckpointManifest.write(
            directory,
            patterns=("*.safetensors", "*.json", "adapter/*", "optimizer/*"),
            ranks=self._settings.ranks,
            zero_stage=self._rank.zero_stage,
            dtype=self._rank.dtype,
            parameters=next(iter(prints.values())),
            version=self._version,
            skips=self._skips,
        )

    def load(self, directory: Path, version: int) -> None:
        """Goes on, bit for bit, from a checkpoint that `save` wrote after `version` steps. Raises InputError for one
        that is damaged, or of a group of another kind; that can be asked beforehand (`check_checkpoint`)."""
        settings = self._rank
        manifest = check_checkpoint(
            directory, ranks=self._settings.ranks, zero_stage=settings.zero_stage, dtype=settings.dtype
        )
        self._announced = None
        answers = {name: rank.load.remote(directory, manifest.parameters) for name, rank in self._ranks.items()}
        self._answers(answers, self._settings.start_seconds, "loading a checkpoint")
        self._version, self._skips = version, manifest.skips

    def status(self) -> PoolStatus:
        """How the group stands, whose ranks live and die together; may be asked from another thread."""
        ranks = len(self._ranks)
        return PoolStatus(target=ranks, replicas={self._life: ranks}, restarts=0)

    def pending_calls(self) -> list[PendingCall]:
        """All ranks, with what they were asked to do; may be asked from another thread."""
        doing, since = self._doing
        delivery = self._delivery
        if not doing and delivery is not None and not delivery.settled():
            doing, since = DELIVERING, delivery.deadline - self._settings.step_seconds
        return [PendingCall(name=name, actor=rank, doing=doing, since=since) for name, rank in self._ranks.items()]

    def stop(self) -> None:
        """Ends all ranks, whatever state they are in, and removes their weights. Those that still answer
        clean up behind them; of a group that is lost, the others wait for the dead one, and nobody waits for them."""
        if self._life != ReplicaState.DEAD:
            answers = {name: rank.close.remote() for name, rank in self._ranks.items()}
            with suppress(ActorFailed, CallTimeout, RayError):
                gather(answers, CLOSE_SECONDS, "closing")
        for rank in self._ranks.values():
            ray.kill(rank)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self, answers: dict[str, ray.ObjectRef], seconds: float, doing: str) -> dict[str, Any]:
        """The answers of all ranks. Raises LearnerLost, or what a rank's own work raised."""
        self._doing = (doing, time.monotonic())
        try:
            return gather(answers, seconds, doing)
        except (CallTimeout, ActorFailed, RayError) as error:
            task = error.__cause__
            cause = task.cause if isinstance(task, RayTaskError) else None
            # What others raise when a peer goes away is a RuntimeError of the collective operation.
            blameless = isinstance(error, CallTimeout) or (cause is not None and not isinstance(cause, RuntimeError))
            died = dead(answers, 0.0 if blameless else DEATH_SECONDS)
            if cause is not None and not died:
                raise cause from error
            self._life = ReplicaState.DEAD
            late = [name for name, answer in answers.items() if not done(answer)]
            reason = f"{', '.join(died)} died while {doing}: {next(iter(died.values()))}" if died else str(error)
            raise LearnerLost(list(died) or late, reason) from error
        finally:
            self._doing = ("", 0.0)


def _learned(reports: dict[str, StepReport]) -> StepResult:
    tally = StepMetrics()
    for report in reports.values():
        tally.merge(report.tally)
    first = next(iter(reports.values()))
    wrong = [name for name, report in reports.items() if not report.finite]
    return StepResult(
        tally=tally,
        gradient_norm=first.gradient_norm if math.isfinite(first.gradient_norm) else None,
        learning_rate=first.learning_rate,
        skipped=first.skipped,
        not_finite=(f"loss of {', '.join(wrong)}" if wrong else "gradient") if first.skipped else None,
    )
