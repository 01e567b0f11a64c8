"""The central controller, the Ray actor of a run: records, requests, checkpoints and recovery around the loop."""

import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import ray

from cluster import ray_cluster
from cluster.monitored_actor import MonitoredActor
from cluster.stall_watchdog import StallDetector, StallMonitor, StallReport
from common.secrets import redact
from configs.schema import Config
from configs.validate import batch_summary
from controller import build
from controller.autoscaling import AutoScaler, target_sizes
from controller.checkpointing import (
    CheckpointError,
    CheckpointManager,
    check_data_unchanged,
    overrides_after,
    read_checkpoint,
    seconds_before,
    sizes_before,
)
from controller.inputs import fingerprints, newest_checkpoint, read_inputs
from controller.loop import IterationResult, TrainingLoop
from controller.missing_scores import MissingScoreLimit
from controller.requests import ControlInbox, ControlRequest
from controller.validation import Validator
from learner.group import LearnerLost
from observability.console import format_event
from observability.iteration import IterationStats, Progress
from observability.metrics.collector import MetricsCollector
from observability.metrics.server import MetricsServer
from observability.reply_schema import ReplyProvenance
from observability.run_directory import RunDirectory, RunLock
from observability.summary import plot_run, summarise_run
from rollout.metrics_server import ANYWHERE, metrics_address

RESTARTS = 3
"""How often the learner may start again from the same checkpoint."""


class Controller(MonitoredActor):
    """Runs a job from start to summary in one thread; `progress` answers from another at any time."""

    def __init__(
        self, config: Config, directory: Path, changes: Mapping[str, tuple[object, object]] | None = None
    ) -> None:
        """changes: settings that are not what they were, of a run that goes on; None for a new run.

        Raises InputError before anything is written: for data, for checkpoint, for a port in use, for a run that
        somebody else works on.
        """
        super().__init__()
        self._stopping = self._over = False
        # Until the checkpoint is there when it has been told to stop; else it goes with its driver.
        ray_cluster.exit_with_driver(lambda: self._stopping and not self._over)
        self._config, self._directory, self._changes = config, directory, changes or {}
        self._lock = threading.Lock()
        self._stage = "reading the data"
        self._notes: list[str] = []
        self._done: list[IterationStats] = []
        self._finished = False
        self._inputs = read_inputs(config)
        self._checkpoints = CheckpointManager(directory)
        checkpoint, resumed = None, changes is not None
        if resumed:
            self._claim = RunLock.take(directory)  # which waits for a controller that is ending, and for its port
        self._loop: TrainingLoop | None = None
        self._numbers = MetricsCollector(config.train.num_steps, lambda: self._loop.standing() if self._loop else None)
        self._metrics = MetricsServer(config.metrics.host, config.metrics.port)
        self._metrics.start(self._numbers, directory.name, lambda: self._loop.rollout.metrics if self._loop else {})
        if resumed:
            checkpoint = newest_checkpoint(config, directory)
            check_data_unchanged(checkpoint.state.get("data", {}) if checkpoint else {}, fingerprints(self._inputs))
            self._records = RunDirectory.open(directory, through=checkpoint.iteration if checkpoint else 0)
            self._records.write_config(config.yaml())
            listed = {key: list(change) for key, change in self._changes.items()}
            self._records.add_event("resumed", iteration=checkpoint.iteration if checkpoint else 0, changes=listed)
            self._numbers.begin(self._records.first_sound())
        else:
            self._records = RunDirectory.create(directory, config.yaml())
            self._claim = RunLock.take(directory)
        self._checkpoint = checkpoint
        self._started = time.perf_counter() - seconds_before(directory)
        self._inbox = ControlInbox.open(directory)
        self._follow = (
            AutoScaler(share=config.rollout.autoscale.target_wait, most=config.rollout.autoscale.max_workers)
            if config.rollout.autoscale.max_workers
            else None
        )
        self._replay: dict[int, list[float | str]] = {}
        """λ as it was set from outside, by the iteration that took it; of iterations that are done again."""
        self._missing = MissingScoreLimit(config.reward.max_missing_rate, config.reward.missing_window)
        self._watch = StallMonitor(
            StallDetector(config.run.stall_timeout_s, time.monotonic()),
            StallReport(directory, lambda: self._loop.pending_calls() if self._loop else [], redact),
            self._tell,
        )

    @property
    def _members(self) -> TrainingLoop:
        """The loop, once it is there."""
        if self._loop is None:
            raise RuntimeError("the run has not started")
        return self._loop

    def metrics_address(self) -> str:
        host = self._metrics.host
        host = ray.util.get_node_ip_address() if host in ANYWHERE else host
        return f"http://{metrics_address(host, self._metrics.port)}/metrics"

    def progress(self, seen: int) -> Progress:
        """What happened since the caller saw `seen` iterations."""
        with self._lock:
            notes, self._notes = self._notes, []
            return Progress(
                stage=self._stage,
                iterations_total=self._config.train.num_steps,
                iterations=self._done[seen:],
                notes=notes,
                phase=self._loop.phase if self._loop else "",
                finished=self._finished,
            )

    def stop(self) -> None:
        """Ends the run after the iteration that is under way, with checkpoint, evaluation and summary; without the
        driver, if that is gone by then."""
        self._stopping = True
        self._records.add_event("stop_requested")

    def run(self) -> dict:
        """The whole job. Returns the summary, which is also written."""
        try:
            with self._watch:
                return self._run()
        except BaseException as error:
            with suppress(OSError):  # a full disk must not hide the error
                self._tell("failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            if self._loop is not None:
                self._members.stop()
            raise
        finally:
            self._over = True

    def _run(self) -> dict:
        records, config = self._records, self._config
        self._tell("started", arithmetic=dict(batch_summary(config)), metrics=self.metrics_address())
        self._at("starting Ray actors: vLLM rollout workers, reward servers, DeepSpeed learner ranks")
        loop = self._begin()
        self._tell("ready", seconds=self._seconds())
        held_out = Validator(config, self._inputs, records, loop, self._provenance)
        self._at("evaluating on held-out questions, before")
        before = held_out.evaluate("before", 0) if self._checkpoint is None else held_out.read("before")
        self._at("iteration")
        self._train(loop, held_out)
        self._at("evaluating on held-out questions, after")
        after = held_out.evaluate("after", records.last)
        self._at("drawing the plots")
        summary = summarise_run(
            self._directory,
            config,
            before,
            after,
            signal=held_out.signal,
            raters=loop.rater_versions,
            weight_version=loop.learner.version,
            members=loop.sizes | {"learner": config.learner.num_workers},
            seconds=self._seconds(),
        )
        records.write_summary(summary)
        plot_run(self._directory, config, summary)
        loop.stop()
        self._tell("finished", seconds=self._seconds())
        self._finished = True
        self._at("done")
        return summary

    def _begin(self) -> TrainingLoop:
        """Everybody up. A learner that is lost meanwhile is started again, with all the others."""
        lost = 0
        while True:
            loop = self._loop = TrainingLoop(self._config, self._inputs, self._directory.name, self._tell)
            loop.scale(sizes_before(self._directory))
            try:
                loop.start(self._checkpoint)
                return loop
            except LearnerLost as error:
                loop.stop()
                lost += 1
                if lost > RESTARTS:
                    raise
                self._tell("learner_died", reason=str(error), iteration=self._records.last, where="the start")

    # ---- iterations

    def _train(self, loop: TrainingLoop, held_out: Validator) -> None:
        """Iterations up to the last, or until somebody stops the run; from the newest checkpoint where the learner is
        lost."""
        number, due, lost = self._records.last + 1, False, 0
        self._replay = overrides_after(self._directory, self._records.last)
        while number <= self._config.train.num_steps:
            self._obey(number)
            self._watch.touch(f"the start of iteration {number}")
            try:
                done = loop.iterate(number)
                self._record(done)
                self._missing.see([j.card for replies in done.judged for j in replies])
                held_out.listen(number)
                last = self._stopping or number == self._config.train.num_steps
                every = self._config.checkpoint.interval
                due = due or last or bool(every and number % every == 0)
                if due and self._save(number, must=last):
                    due, lost = False, 0
            except LearnerLost as error:
                lost = self._bring_back_the_learner(error, lost)
                number = self._records.last + 1
                continue
            if last:
                loop.call_off()
                return
            self._adapt(loop, done)
            number += 1

    def _bring_back_the_learner(self, error: LearnerLost, lost: int) -> int:
        """Goes back to the newest checkpoint. lost: how often it has done so since that was written; returns the new
        number. Raises what it was given when that is too often."""
        begun, iteration = time.perf_counter(), self._checkpoint.iteration if self._checkpoint else 0
        where = f"iteration {iteration}" if iteration else "its start"
        while True:
            lost += 1
            if lost > RESTARTS:
                raise error
            self._tell("learner_died", reason=str(error), iteration=self._records.last, where=where)
            try:
                self._members.restart_learner(self._checkpoint)
            except LearnerLost as again:
                error = again
            else:
                break
        self._records.rewind(iteration)
        self._missing = MissingScoreLimit(self._config.reward.max_missing_rate, self._config.reward.missing_window)
        self._replay = overrides_after(self._directory, iteration)
        self._tell("learner_restarted", iteration=iteration, seconds=time.perf_counter() - begun)
        return lost

    def _save(self, iteration: int, *, must: bool) -> bool:
        """A checkpoint. Whether there is one now; must: raises when there is not."""
        loop = self._members
        try:
            path = self._checkpoints.write(iteration, loop.state(), loop.save, keep=self._config.checkpoint.max_to_keep)
        except CheckpointError as error:
            if must:
                raise
            self._tell("checkpoint_failed", iteration=iteration, reason=str(error))
            return False
        self._checkpoint = read_checkpoint(path)
        self._tell("checkpoint", iteration=iteration)
        return True

    def _adapt(self, loop: TrainingLoop, done: IterationResult) -> None:
        """The number of workers follows the learner's wait, where that is asked for."""
        if self._follow is None:
            return
        seconds = done.iteration.seconds
        wanted = self._follow.decide(loop.rollout.target, seconds["rollout"] + seconds["reward"], seconds["total"])
        loop.scale({"rollout": wanted})

    def _obey(self, number: int) -> None:
        """Takes what was asked of the run since the last iteration, and writes down that it did; before that, what was
        asked when this iteration was done for the first time."""
        for value in self._replay.pop(number, ()):
            self._members.mix.override(value)
        for request in self._inbox.take():
            try:
                fields = self._apply(request)
            except ValueError as error:
                self._tell("request_rejected", id=request.id, reason=str(error))
            else:
                self._tell(id=request.id, iteration=number, **fields)
            self._inbox.done(request)

    def _apply(self, request: ControlRequest) -> dict:
        """Does what is asked. Returns the event that says so. Raises ValueError for what cannot be done."""
        content, loop = request.content, self._members
        if isinstance(content, dict) and content.get("kind") == "scale":
            sizes = target_sizes(content, dict.fromkeys(loop.sizes, self._config.rollout.batch_size))
            loop.scale(sizes)
            return {"kind": "scale", "value": sizes}
        return {"kind": "mix", "value": loop.mix.obey(content)}

    # ---- what is told and kept

    def _tell(self, kind: str, **fields: object) -> None:
        """An event, and a line for whoever watches."""
        self._numbers.event(kind)
        self._records.add_event(kind, **fields)
        sentence = format_event(kind, fields)
        if sentence is not None:
            with self._lock:
                self._notes.append(redact(sentence))

    def _at(self, stage: str) -> None:
        self._watch.touch(stage)
        self._numbers.progress()
        with self._lock:
            self._stage = stage

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _record(self, done: IterationResult) -> None:
        number = done.iteration.iteration
        self._records.add_replies(number, done.rows(self._members.routes), self._provenance())
        self._records.add_iteration(done.iteration)
        with self._numbers.spending():
            reward = self._members.reward
            self._numbers.observe(done.iteration, judges=reward.counters(), left_alone=reward.circuit_open)
        if done.not_finite is not None:
            self._tell("step_skipped", iteration=number, reason=f"the {done.not_finite} was not finite")
        with self._lock:
            self._done.append(done.iteration)

    def _provenance(self) -> ReplyProvenance:
        return build.provenance(self._config, self._inputs, self._members.rater_versions)
