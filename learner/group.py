"""The learner group: drives all learner ranks as one, and detects dead ranks."""

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
    """A call that all ranks execute together."""

    answers: dict[str, ray.ObjectRef]
    deadline: float
    """On the clock of `time.monotonic`."""

    def settled(self) -> bool:
        """Return True if all ranks have answered, one has failed, or the deadline has passed."""
        if time.monotonic() >= self.deadline:
            return True
        answers = list(self.answers.values())
        answered, others = ray.wait(answers, num_returns=len(answers), timeout=0)
        return not others or any(map(_failed, answered))

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())


def _failed(answer: ray.ObjectRef) -> bool:
    """Return True if a finished call failed."""
    try:
        ray.get(answer)
    except RayError:
        return True
    return False


def is_done(answer: ray.ObjectRef) -> bool:
    """Return True if a call has finished."""
    return bool(ray.wait([answer], timeout=0)[0])


def find_dead(answers: dict[str, ray.ObjectRef], timeout_s: float) -> dict[str, str]:
    """Return ranks that died, with the reason. The search ends at the first, or when all ranks have answered."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = {}
        for name, answer in answers.items():
            if is_done(answer):
                try:
                    ray.get(answer)
                except RayTaskError:
                    continue
                except RayError as error:
                    found[name] = str(describe(error))
        pending = [answer for answer in answers.values() if not is_done(answer)]
        if found or not pending or time.monotonic() >= deadline:
            return found
        ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))


CLOSE_TIMEOUT_S = 10.0
"""Deadline for ranks to clean up."""

DEATH_GRACE_S = 5.0
"""Wait after a rank's error for the death of another rank, which may have caused it."""

STEPPING = "taking a step"
BROADCASTING = "broadcasting weights"


class LearnerLost(RuntimeError):
    """A rank died or missed its deadline. The group is unusable: `stop` it and start another."""

    def __init__(self, names: list[str], reason: str) -> None:
        super().__init__(reason)
        self.names, self.reason = names, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.names, self.reason)


class NonFiniteStep(ArithmeticError):
    """Too many consecutive steps had a non-finite loss or gradient. The message names the dump of the last batch."""


@dataclass(frozen=True, kw_only=True)
class LearnerGroupConfig:
    ranks: int
    start_seconds: float
    """Deadline for the placement of all ranks, and for their start."""
    step_seconds: float
    """Deadline for a step, a weight publication or a checkpoint."""
    micro_batch_tokens: int
    """Maximum tokens of a rank's micro-batch; a single item may exceed it."""
    skips_in_a_row: int
    """Maximum consecutive skipped steps; the run then stops, as the next batch would most likely fail too."""
    faults: Path
    """Folder for the dump of the last skipped batch; created when needed."""


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """A published weight version, with the learner's own log-probabilities of the probe."""

    update: WeightUpdate
    probe_logps: list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a step over the whole batch."""

    metrics: StepMetrics
    gradient_norm: float | None
    """Before clipping; None if the step was skipped."""
    learning_rate: float
    """Learning rate of the step. A skipped step does not advance the schedule."""
    skipped: bool = False
    """True if weights and optimizer are unchanged, because a loss or gradient was not finite."""
    not_finite: str | None = None
    """What was not finite: "loss of learner-1" or "gradient"."""


@dataclass(frozen=True, kw_only=True)
class StepHandle(PendingCalls):
    """A step in progress."""

    items: list[Item]
    mix: float


class LearnerGroup:
    """Learner ranks by name. Version 0 is the checkpoint; every step produces the next version.

    A skipped step produces a version too, with the same weights: versions count iterations without gaps.

    If a rank dies or misses a deadline, every method raises LearnerLost. An error of the work itself, such as
    InputError, is raised unchanged.
    """

    def __init__(
        self, settings: LearnerGroupConfig, rank: LearnerConfig, family: Family, objective: Objective, place: Placement
    ) -> None:
        """place: One bundle per rank. It outlives the group, so that no other actor takes a dead rank's resources."""
        self._settings, self._rank, self._place = settings, rank, place
        self._version = self._consecutive_skips = 0
        self._state = ReplicaState.STARTING
        self._activity = ("", 0.0)
        self._folder: Path | None = None
        """Folder of the published weights, which a dead rank cannot remove."""
        self._step: StepHandle | None = None
        self._broadcast: PendingCalls | None = None
        self._num_broadcasts = 0
        self._published_version: int | None = None
        """Version published last; None after a load."""
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
        """Start all ranks and load the model. Return the number of parameters."""
        first, leader = next(iter(self._ranks.items()))
        deadline = self._settings.start_seconds
        self._activity = ("waiting for resources", time.monotonic())
        if not self._place.wait(deadline):
            self._state = ReplicaState.DEAD
            missing = missing_resources(self._place.resources)
            raise LearnerLost(list(self._ranks), f"no resources to start {', '.join(self._ranks)}: {missing}")
        host, port = self._wait_for_ranks({first: leader.address.remote()}, deadline, "starting")[first]
        answers = {name: rank.connect.remote(host, port) for name, rank in self._ranks.items()}
        parameters = self._wait_for_ranks(answers, deadline, "joining the learner group")[first]
        self._state = ReplicaState.READY
        return parameters

    def step(self, items: list[Item], mix: float) -> StepResult:
        """Take one optimizer step on preference and anchor items. Raises what `finish` raises."""
        self.begin(items, mix)
        return self.finish()

    def begin(self, items: list[Item], mix: float) -> None:
        """Start a step on all ranks. Call `finish` before any other method."""
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
        self._activity = (STEPPING, now)

    @property
    def owed(self) -> list[ray.ObjectRef]:
        """Pending answers of the current step."""
        answers = list(self._step.answers.values()) if self._step is not None else []
        return ray.wait(answers, num_returns=len(answers), timeout=0)[1] if answers else []

    def settled(self) -> bool:
        """Return True if `finish` would not wait."""
        return self._step is None or self._step.settled()

    def finish(self) -> StepResult:
        """Wait for the end of the step. Raises NonFiniteStep after too many consecutive skipped steps."""
        if self._step is None:
            raise RuntimeError("no step is in progress; call begin first")
        step, self._step = self._step, None
        reports = self._wait_for_ranks(step.answers, step.remaining_s, STEPPING)
        learned = _merge_reports(reports)
        self._version += 1
        self._consecutive_skips = self._consecutive_skips + 1 if learned.skipped else 0
        if self._consecutive_skips >= self._settings.skips_in_a_row:
            self._raise_non_finite(
                BatchDump(items=step.items, mix=step.mix, version=self._version, reason=str(learned.not_finite))
            )
        return learned

    def _raise_non_finite(self, batch: BatchDump) -> None:
        path = self._settings.faults / f"step-{batch.version:06d}.parquet"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_batch(path, batch)
            dump = f"its batch is in {path} (read it with learner.batch_dump.read_batch)"
        except OSError as error:
            dump = f"its batch could not be written: {error}"
        raise NonFiniteStep(
            f"{self._consecutive_skips} steps in a row were skipped, as many as learner.max_consecutive_skips "
            "allows: the "
            f"{batch.reason} of step {batch.version} is not finite; {dump}"
        )

    def publish(self, probe: list[np.ndarray]) -> PublishResult:
        """Publish the newest weights for workers to fetch, or prepare their broadcast."""
        answers = {name: rank.publish.remote(self._version, probe) for name, rank in self._ranks.items()}
        reports = self._wait_for_ranks(answers, self._settings.step_seconds, "publishing weights")
        update, logps = next(report for report in reports.values() if report is not None)
        self._published_version = self._version
        self._folder = update.path.parent if update.path is not None else None
        return PublishResult(update=update, probe_logps=logps)

    def can_broadcast(self) -> bool:
        """Return True if the ranks are idle and still hold the published version.

        Raises the error of the previous broadcast, if it failed.
        """
        if self._state != ReplicaState.READY or self._step is not None or self._published_version != self._version:
            return False
        if self._broadcast is not None and self._broadcast.settled():
            broadcast, self._broadcast = self._broadcast, None
            self._wait_for_ranks(broadcast.answers, broadcast.remaining_s, BROADCASTING)
        return self._broadcast is None

    def broadcast(self, update: WeightUpdate, receivers: Sequence[str], timeout_s: float) -> WeightUpdate:
        """Start a broadcast of the published version. Later calls of the group run after it.

        Args:
            receivers: Names of the receiving engine ranks.
            timeout_s: Maximum wait of one participant for another.

        Returns the update to pass to the receivers.
        """
        if update.call is None:
            raise ValueError("this update was not published for a broadcast: workers fetch it")
        self._num_broadcasts += 1
        call = replace(update.call, number=self._num_broadcasts, receivers=tuple(receivers), timeout_s=timeout_s)
        answers = {name: rank.broadcast.remote(call) for name, rank in self._ranks.items()}
        self._broadcast = PendingCalls(answers=answers, deadline=time.monotonic() + self._settings.step_seconds)
        return replace(update, call=call)

    def save(self, directory: Path) -> None:
        """Write a checkpoint into an existing folder (`learner.checkpoint`), the manifest last.

        Raises OSError; the group remains usable.
        """
        answers = {name: rank.save.remote(directory) for name, rank in self._ranks.items()}
        try:
            prints = self._wait_for_ranks(answers, self._settings.step_seconds, "saving a checkpoint")
        except OSError:
            # Wait until the other ranks stop writing: the caller may then remove the folder.
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
            skips=self._consecutive_skips,
        )

    def load(self, directory: Path, version: int) -> None:
        """Restore, bit for bit, a checkpoint that `save` wrote after `version` steps.

        Raises InputError if it is damaged or belongs to a group of another kind; `check_checkpoint` checks beforehand.
        """
        settings = self._rank
        manifest = check_checkpoint(
            directory, ranks=self._settings.ranks, zero_stage=settings.zero_stage, dtype=settings.dtype
        )
        self._published_version = None
        answers = {name: rank.load.remote(directory, manifest.parameters) for name, rank in self._ranks.items()}
        self._wait_for_ranks(answers, self._settings.start_seconds, "loading a checkpoint")
        self._version, self._consecutive_skips = version, manifest.skips

    def status(self) -> PoolStatus:
        """Return the status of the ranks, which start and fail together. Thread-safe."""
        ranks = len(self._ranks)
        return PoolStatus(target=ranks, replicas={self._state: ranks}, restarts=0)

    def pending_calls(self) -> list[PendingCall]:
        """Return all ranks with their current call. Thread-safe."""
        doing, since = self._activity
        broadcast = self._broadcast
        if not doing and broadcast is not None and not broadcast.settled():
            doing, since = BROADCASTING, broadcast.deadline - self._settings.step_seconds
        return [PendingCall(name=name, actor=rank, doing=doing, since=since) for name, rank in self._ranks.items()]

    def stop(self) -> None:
        """Stop all ranks, in any state, and remove their published weights.

        Ranks of a usable group clean up first. In a lost group they may wait for the dead rank, so they are killed.
        """
        if self._state != ReplicaState.DEAD:
            answers = {name: rank.close.remote() for name, rank in self._ranks.items()}
            with suppress(ActorFailed, CallTimeout, RayError):
                gather(answers, CLOSE_TIMEOUT_S, "closing")
        for rank in self._ranks.values():
            ray.kill(rank)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for_ranks(self, answers: dict[str, ray.ObjectRef], timeout_s: float, doing: str) -> dict[str, Any]:
        """Wait for the answers of all ranks. Raises LearnerLost, or the error of a rank's own work."""
        self._activity = (doing, time.monotonic())
        try:
            return gather(answers, timeout_s, doing)
        except (CallTimeout, ActorFailed, RayError) as error:
            task = error.__cause__
            cause = task.cause if isinstance(task, RayTaskError) else None
            # If a peer dies, the collective operation of the others raises RuntimeError.
            not_a_peer_error = isinstance(error, CallTimeout) or (
                cause is not None and not isinstance(cause, RuntimeError)
            )
            died = find_dead(answers, 0.0 if not_a_peer_error else DEATH_GRACE_S)
            if cause is not None and not died:
                raise cause from error
            self._state = ReplicaState.DEAD
            late = [name for name, answer in answers.items() if not is_done(answer)]
            reason = f"{', '.join(died)} died while {doing}: {next(iter(died.values()))}" if died else str(error)
            raise LearnerLost(list(died) or late, reason) from error
        finally:
            self._activity = ("", 0.0)


def _merge_reports(reports: dict[str, StepReport]) -> StepResult:
    metrics = StepMetrics()
    for report in reports.values():
        metrics.merge(report.metrics)
    first = next(iter(reports.values()))
    wrong = [name for name, report in reports.items() if not report.finite]
    return StepResult(
        metrics=metrics,
        gradient_norm=first.gradient_norm if math.isfinite(first.gradient_norm) else None,
        learning_rate=first.learning_rate,
        skipped=first.skipped,
        not_finite=(f"loss of {', '.join(wrong)}" if wrong else "gradient") if first.skipped else None,
    )
