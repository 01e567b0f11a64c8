"""The controller, the Ray actor of a run: records, requests, checkpoints and recovery around the loop."""

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
from controller.checkpointing import CheckpointError, CheckpointManager, read_checkpoint
from controller.inputs import fingerprints, newest_checkpoint, read_inputs
from controller.loop import IterationResult, TrainingLoop
from controller.missing_scores import MissingScoreLimit
from controller.requests import ControlInbox, ControlRequest
from controller.resuming import check_data_unchanged, overrides_after, seconds_before, sizes_before
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

MAX_RESTARTS = 3
"""Restarts of the learner from the same checkpoint."""


class Controller(MonitoredActor):
    """Runs a job from start to summary in one thread; `progress` answers from another at any time."""

    def __init__(
        self, config: Config, directory: Path, changes: Mapping[str, tuple[object, object]] | None = None
    ) -> None:
        """changes: changed settings of a resumed run, old and new; None for a new run.

        Raises InputError before anything is written: for the data, the checkpoint, a port in use, or a run that another
        job works on.
        """
        super().__init__()
        self._stopping = self._ended = False
        # After a stop request it outlives its driver until the checkpoint is written.
        ray_cluster.exit_with_driver(lambda: self._stopping and not self._ended)
        self._config, self._directory, self._changes = config, directory, changes or {}
        self._lock = threading.Lock()
        self._stage = "reading the data"
        self._notes: list[str] = []
        self._iterations: list[IterationStats] = []
        self._finished = False
        self._inputs = read_inputs(config)
        self._checkpoints = CheckpointManager(directory)
        checkpoint, resumed = None, changes is not None
        if resumed:
            self._run_lock = RunLock.acquire(directory)  # waits for a controller that is ending, and for its port
        self._loop: TrainingLoop | None = None
        self._collector = MetricsCollector(config.train.num_steps, lambda: self._loop.status() if self._loop else None)
        self._metrics_server = MetricsServer(config.metrics.host, config.metrics.port)
        self._metrics_server.start(
            self._collector, directory.name, lambda: self._loop.rollout.metrics if self._loop else {}
        )
        if resumed:
            checkpoint = newest_checkpoint(config, directory)
            check_data_unchanged(checkpoint.state.get("data", {}) if checkpoint else {}, fingerprints(self._inputs))
            self._records = RunDirectory.open(directory, through=checkpoint.iteration if checkpoint else 0)
            self._records.write_config(config.yaml())
            listed = {key: list(change) for key, change in self._changes.items()}
            self._records.add_event("resumed", iteration=checkpoint.iteration if checkpoint else 0, changes=listed)
            self._collector.begin(self._records.first_sound())
        else:
            self._records = RunDirectory.create(directory, config.yaml())
            self._run_lock = RunLock.acquire(directory)
        self._checkpoint = checkpoint
        self._started = time.perf_counter() - seconds_before(directory)
        self._inbox = ControlInbox.open(directory)
        self._autoscaler = (
            AutoScaler(
                target_wait=config.rollout.autoscale.target_wait, max_workers=config.rollout.autoscale.max_workers
            )
            if config.rollout.autoscale.max_workers
            else None
        )
        self._replay: dict[int, list[float | str]] = {}
        """Overrides of λ in iterations that are repeated, by iteration."""
        self._missing_scores = MissingScoreLimit(config.reward.max_missing_rate, config.reward.missing_window)
        self._stall_monitor = StallMonitor(
            StallDetector(config.run.stall_timeout_s, time.monotonic()),
            StallReport(directory, lambda: self._loop.pending_calls() if self._loop else [], redact),
            self._emit_event,
        )

    @property
    def _running_loop(self) -> TrainingLoop:
        """The loop. Raises RuntimeError before the run has started."""
        if self._loop is None:
            raise RuntimeError("the run has not started")
        return self._loop

    def metrics_address(self) -> str:
        """Return the URL of the metrics."""
        host = self._metrics_server.host
        host = ray.util.get_node_ip_address() if host in ANYWHERE else host
        return f"http://{metrics_address(host, self._metrics_server.port)}/metrics"

    def progress(self, seen: int) -> Progress:
        """Return the progress since the caller saw `seen` iterations."""
        with self._lock:
            notes, self._notes = self._notes, []
            return Progress(
                stage=self._stage,
                iterations_total=self._config.train.num_steps,
                iterations=self._iterations[seen:],
                notes=notes,
                phase=self._loop.phase if self._loop else "",
                finished=self._finished,
            )

    def stop(self) -> None:
        """End the run after the current iteration, with checkpoint, evaluation and summary. The run needs no driver
        for that."""
        self._stopping = True
        self._records.add_event("stop_requested")

    def run(self) -> dict:
        """Run the job. Write the summary and return it."""
        try:
            with self._stall_monitor:
                return self._run()
        except BaseException as error:
            with suppress(OSError):  # a full disk must not hide the error
                self._emit_event("failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            if self._loop is not None:
                self._running_loop.stop()
            raise
        finally:
            self._ended = True

    def _run(self) -> dict:
        records, config = self._records, self._config
        self._emit_event("started", arithmetic=dict(batch_summary(config)), metrics=self.metrics_address())
        self._set_stage("starting Ray actors: vLLM rollout workers, reward servers, DeepSpeed learner ranks")
        loop = self._start_loop()
        self._emit_event("ready", seconds=self._seconds())
        validator = Validator(config, self._inputs, records, loop, self._provenance)
        self._set_stage("evaluating on held-out questions, before")
        before = validator.evaluate("before", 0) if self._checkpoint is None else validator.read("before")
        self._set_stage("iteration")
        self._train(loop, validator)
        self._set_stage("evaluating on held-out questions, after")
        after = validator.evaluate("after", records.last)
        self._set_stage("drawing the plots")
        summary = summarise_run(
            self._directory,
            config,
            before,
            after,
            signal=validator.signal,
            raters=loop.rater_versions,
            weight_version=loop.learner.version,
            members=loop.sizes | {"learner": config.learner.num_workers},
            seconds=self._seconds(),
        )
        records.write_summary(summary)
        plot_run(self._directory, config, summary)
        loop.stop()
        self._emit_event("finished", seconds=self._seconds())
        self._finished = True
        self._set_stage("done")
        return summary

    def _start_loop(self) -> TrainingLoop:
        """Start all actors. If the learner dies during the start, start all again."""
        restarts = 0
        while True:
            loop = self._loop = TrainingLoop(self._config, self._inputs, self._directory.name, self._emit_event)
            loop.scale(sizes_before(self._directory))
            try:
                loop.start(self._checkpoint)
                return loop
            except LearnerLost as error:
                loop.stop()
                restarts += 1
                if restarts > MAX_RESTARTS:
                    raise
                self._emit_event("learner_died", reason=str(error), iteration=self._records.last, where="the start")

    # ---- iterations

    def _train(self, loop: TrainingLoop, validator: Validator) -> None:
        """Run iterations up to the last, or until a stop request. If the learner dies, go back to the newest
        checkpoint."""
        number, due, restarts = self._records.last + 1, False, 0
        self._replay = overrides_after(self._directory, self._records.last)
        while number <= self._config.train.num_steps:
            self._apply_requests(number)
            self._stall_monitor.touch(f"the start of iteration {number}")
            try:
                result = loop.train_step(number)
                self._record(result)
                self._missing_scores.add([reply.card for replies in result.scored for reply in replies])
                validator.record_listening(number)
                last = self._stopping or number == self._config.train.num_steps
                every = self._config.checkpoint.interval
                due = due or last or bool(every and number % every == 0)
                if due and self._save(number, must=last):
                    due, restarts = False, 0
            except LearnerLost as error:
                restarts = self._restart_learner(error, restarts)
                number = self._records.last + 1
                continue
            if last:
                loop.cancel_prefetched()
                return
            self._autoscale(loop, result)
            number += 1

    def _restart_learner(self, error: LearnerLost, restarts: int) -> int:
        """Restart the learner from the newest checkpoint. Raise `error` after too many restarts.

        restarts: restarts since that checkpoint was written. Return the new number.
        """
        begun, iteration = time.perf_counter(), self._checkpoint.iteration if self._checkpoint else 0
        where = f"iteration {iteration}" if iteration else "its start"
        while True:
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise error
            self._emit_event("learner_died", reason=str(error), iteration=self._records.last, where=where)
            try:
                self._running_loop.restart_learner(self._checkpoint)
            except LearnerLost as again:
                error = again
            else:
                break
        self._records.rewind(iteration)
        self._missing_scores = MissingScoreLimit(
            self._config.reward.max_missing_rate, self._config.reward.missing_window
        )
        self._replay = overrides_after(self._directory, iteration)
        self._emit_event("learner_restarted", iteration=iteration, seconds=time.perf_counter() - begun)
        return restarts

    def _save(self, iteration: int, *, must: bool) -> bool:
        """Write a checkpoint. Return False if the disk failed. must: raise instead."""
        loop = self._running_loop
        try:
            path = self._checkpoints.write(iteration, loop.state(), loop.save, keep=self._config.checkpoint.max_to_keep)
        except CheckpointError as error:
            if must:
                raise
            self._emit_event("checkpoint_failed", iteration=iteration, reason=str(error))
            return False
        self._checkpoint = read_checkpoint(path)
        self._emit_event("checkpoint", iteration=iteration)
        return True

    def _autoscale(self, loop: TrainingLoop, result: IterationResult) -> None:
        """Adapt the number of workers to the learner's wait, if configured."""
        if self._autoscaler is None:
            return
        seconds = result.iteration.seconds
        target = self._autoscaler.decide(loop.rollout.target, seconds["rollout"] + seconds["reward"], seconds["total"])
        loop.scale({"rollout": target})

    def _apply_requests(self, number: int) -> None:
        """Apply requests since the last iteration, each with an event. A repeated iteration first applies the requests
        of its first time."""
        for value in self._replay.pop(number, ()):
            self._running_loop.mix_ratio.set_override(value)
        for request in self._inbox.take():
            try:
                fields = self._apply(request)
            except ValueError as error:
                self._emit_event("request_rejected", id=request.id, reason=str(error))
            else:
                self._emit_event(id=request.id, iteration=number, **fields)
            self._inbox.done(request)

    def _apply(self, request: ControlRequest) -> dict:
        """Apply a request. Return the fields of its event. Raise ValueError for an invalid one."""
        content, loop = request.content, self._running_loop
        if isinstance(content, dict) and content.get("kind") == "scale":
            sizes = target_sizes(content, dict.fromkeys(loop.sizes, self._config.rollout.batch_size))
            loop.scale(sizes)
            return {"kind": "scale", "value": sizes}
        return {"kind": "mix", "value": loop.mix_ratio.apply_request(content)}

    # ---- events and records

    def _emit_event(self, kind: str, **fields: object) -> None:
        """Record an event, and print it if it has a sentence."""
        self._collector.event(kind)
        self._records.add_event(kind, **fields)
        sentence = format_event(kind, fields)
        if sentence is not None:
            with self._lock:
                self._notes.append(redact(sentence))

    def _set_stage(self, stage: str) -> None:
        self._stall_monitor.touch(stage)
        self._collector.progress()
        with self._lock:
            self._stage = stage

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _record(self, result: IterationResult) -> None:
        number = result.iteration.iteration
        self._records.add_replies(number, result.rows(self._running_loop.routes), self._provenance())
        self._records.add_iteration(result.iteration)
        with self._collector.spending():
            reward = self._running_loop.reward
            self._collector.observe(result.iteration, judges=reward.counters(), circuit_open=reward.circuit_open)
        if result.not_finite is not None:
            self._emit_event("step_skipped", iteration=number, reason=f"the {result.not_finite} was not finite")
        with self._lock:
            self._iterations.append(result.iteration)

    def _provenance(self) -> ReplyProvenance:
        return build.provenance(self._config, self._inputs, self._running_loop.rater_versions)
