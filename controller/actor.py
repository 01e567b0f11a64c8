"""The central controller: the Ray actor that owns a run. Records, metrics, evaluation around the loop."""

import importlib.metadata
import json
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np

from controller import assembly
from controller.config import Config, arithmetic
from controller.evaluation import paired_errors, summarise
from controller.iteration import PHASES, Iteration
from controller.loop import Done, Loop
from controller.metrics import Metrics
from controller.progress import Progress
from controller.records import Records, read_iterations
from controller.replies import Provenance, ScoredReply
from controller.requests import Inbox
from controller.statistics import Judged
from speech.records import Group

HEADLINE = "held_out"
"""The evaluation set that the summary reports first and recordings are taken from."""


class Controller:
    """Runs a job from start to summary in one thread; `progress` answers from another at any time."""

    def __init__(self, config: Config, directory: Path) -> None:
        """Raises InputError before anything is written: for data, for checkpoint, for a port in use."""
        self._config, self._directory = config, directory
        self._lock = threading.Lock()
        self._stage = "reading the data"
        self._notes: list[str] = []
        self._done: list[Iteration] = []
        self._finished = self._stopping = False
        self._signal: dict[str, float | None] = {}
        self._inputs = assembly.read_inputs(config)
        self._metrics = Metrics(config.metrics.host, config.metrics.port)
        self._metrics.start()
        self._records = Records.create(directory, config.yaml())
        self._inbox = Inbox.open(directory)
        self._loop: Loop | None = None

    @property
    def _members(self) -> Loop:
        """The loop, once it is there."""
        if self._loop is None:
            raise RuntimeError("the run has not started")
        return self._loop

    def metrics_address(self) -> str:
        return f"http://{self._metrics.host}:{self._metrics.port}/metrics"

    def progress(self, seen: int) -> Progress:
        """What happened since the caller saw `seen` iterations."""
        with self._lock:
            notes, self._notes = self._notes, []
            return Progress(
                stage=self._stage,
                iterations_total=self._config.run.iterations,
                iterations=self._done[seen:],
                notes=notes,
                phase=self._loop.phase if self._loop else "",
                finished=self._finished,
            )

    def stop(self) -> None:
        """Ends the run after the iteration that is under way, with checkpoint, evaluation and summary."""
        self._stopping = True
        self._records.add_event("stop requested")

    def run(self) -> dict:
        """The whole job. Returns the summary, which is also written."""
        try:
            return self._run()
        except BaseException as error:
            self._records.add_event("failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            if self._loop is not None:
                with suppress(RuntimeError):  # the first error is the one to tell
                    self._members.stop()
            raise

    def _run(self) -> dict:
        started = time.perf_counter()
        records, config = self._records, self._config
        records.add_event("started", arithmetic=dict(arithmetic(config)), metrics=self.metrics_address())
        self._at("starting Ray actors: vLLM rollout workers, reward servers, DeepSpeed learner ranks")
        loop = self._loop = Loop(config, self._inputs, self._directory.name)
        loop.start()
        records.add_event("ready", seconds=time.perf_counter() - started)
        self._at("evaluating on held-out questions, before")
        before = self._evaluate("before", 0)
        self._at("iteration")
        for number in range(1, config.run.iterations + 1):
            self._obey(number)
            self._record(loop.iterate(number))
            last = self._stopping or number == config.run.iterations
            if last or (config.run.checkpoint_every and number % config.run.checkpoint_every == 0):
                self._checkpoint(number)
            if last:
                break
        self._at("evaluating on held-out questions, after")
        after = self._evaluate("after", number)
        self._at("drawing the plots")
        summary = self._summary(before, after, time.perf_counter() - started)
        records.write_summary(summary)
        self._plot(summary)
        with suppress(RuntimeError):  # the work is done and on disk
            loop.stop()
        records.add_event("finished", seconds=time.perf_counter() - started)
        self._finished = True
        self._at("done")
        return summary

    def _at(self, stage: str) -> None:
        with self._lock:
            self._stage = stage

    def _obey(self, number: int) -> None:
        """Takes what was asked of the run since the last iteration, and writes down that it did."""
        for request in self._inbox.take():
            try:
                value = self._members.mix.obey(request.content)
            except ValueError as error:
                self._records.add_event("refused", id=request.id, reason=str(error))
            else:
                self._records.add_event("mix", id=request.id, value=value, iteration=number)
                with self._lock:
                    self._notes.append(f"λ from outside, from iteration {number} on: {value}")
            self._inbox.done(request)

    def _record(self, done: Done) -> None:
        number = done.iteration.iteration
        rows = [
            self._row(j, use)
            for replies, uses in zip(done.judged, done.uses, strict=True)
            for j, use in zip(replies, uses, strict=True)
        ]
        rows += [self._row(j, "compared") for j in done.examples]
        self._records.add_replies(number, rows, self._provenance())
        self._records.add_iteration(done.iteration)
        version = self._members.learner.version
        self._metrics.observe(done.iteration, dict.fromkeys(self._members.rollout.names, version))
        with self._lock:
            self._done.append(done.iteration)

    def _row(self, judged: Judged, use: str | None) -> ScoredReply:
        return ScoredReply(judged=judged, routes=[route.label for route in self._members.routes], use=use)

    def _provenance(self) -> Provenance:
        r = self._config.rollout
        return Provenance(
            raters=self._members.rater_versions,
            sampling={
                "temperature": f"{r.temperature:g}",
                "top_p": f"{r.top_p:g}",
                "top_k": str(r.top_k),
                "max_tokens": str(r.max_tokens),
                "structure": "on" if assembly.constrained(self._config, self._inputs.family) else "off",
            },
        )

    def _checkpoint(self, iteration: int) -> None:
        """The learner's state, and beside it the controller's: λ, and how far the data has been dealt out."""
        directory = self._directory / "checkpoints" / f"{iteration:06d}"
        self._members.learner.save(directory)
        (directory / "controller.json").write_text(
            json.dumps(self._members.state() | {"iteration": iteration}, indent=2)
        )
        self._records.add_event("checkpoint", iteration=iteration)

    def _evaluate(self, when: str, iteration: int) -> dict[str, list[Judged]]:
        """Judged replies by evaluation set. Writes them, and recordings of the headline set."""
        judged = {}
        for place, (name, prompts) in enumerate(self._inputs.held_out.items()):
            groups, judged[name] = self._members.evaluate(prompts, place)
            rows = [self._row(j, None) for j in judged[name]]
            self._records.add_evaluation(when, name, iteration, rows, self._provenance())
            if name == HEADLINE:
                self._write_recordings(groups, when)
                self._measure_signal(groups, when)
        return judged

    def _write_recordings(self, groups: list[Group], when: str) -> None:
        for group in groups[: self._config.evaluation.recordings]:
            stem = self._directory / "audio" / group.prompt.id.replace("/", "_")
            sounds = {when: group.replies[0].token_ids}
            if when == "before":
                sounds["question"] = group.prompt.token_ids
            for label, waveform in zip(sounds, self._members.reward.decode(list(sounds.values())), strict=True):
                if waveform is not None:
                    waveform.write(stem.with_name(f"{stem.name}-{label}.wav"))

    def _measure_signal(self, groups: list[Group], when: str) -> None:
        if not self._config.reward.signal:
            return
        chosen = [group.replies[0].token_ids for group in groups[: self._config.evaluation.signal_samples]]
        values = self._members.reward.measure(self._config.reward.signal, chosen)
        self._signal[when] = float(np.mean(values)) if values else None

    def _summary(self, before: dict, after: dict, total: float) -> dict:
        highest = self._config.mix.highest_score
        table = read_iterations(self._directory)

        def column(name: str) -> np.ndarray:
            return np.asarray(table[name].to_pylist(), dtype=float)

        held_out = {
            name: {
                "before": summarise(before[name], highest),
                "after": summarise(after[name], highest),
                "standard_error_of_change": paired_errors(before[name], after[name], highest),
            }
            for name in before
        }
        return {
            "run": self._directory.name,
            "seed": self._config.run.seed,
            "iterations": table.num_rows,
            "weight_version": self._members.learner.version,
            "lambda_first": float(column("lambda")[0]),
            "lambda_last": float(column("lambda")[-1]),
            **held_out,
            "signal_quality": self._signal,
            "logp_gap_largest": float(np.nanmax([column("logp_gap_text"), column("logp_gap_speech")])),
            "probe_gap_largest": float(column("probe_gap").max()),
            "replies": int(column("replies").sum()),
            "replies_dropped": int(column("replies_dropped").sum()),
            "seconds": {"total": total} | {phase: float(column(f"seconds_{phase}").sum()) for phase in PHASES},
            "tokens": {name: int(column(f"tokens_{name}").sum()) for name in ("text", "speech")},
            "workers": {
                "rollout": self._config.rollout.workers,
                "reward": self._config.reward.servers,
                "learner": self._config.learner.ranks,
            },
            "versions": {name: _version(name) for name in ("vllm", "ray", "deepspeed", "torch", "transformers")},
            "raters": self._members.rater_versions,
        }

    def _plot(self, summary: dict) -> None:
        from controller.plots import plot_lambda, plot_scores  # matplotlib is slow to import

        table = read_iterations(self._directory)
        plot_lambda(table, self._directory / "lambda.png")
        headline = summary.get(HEADLINE, {})
        plot_scores(
            table,
            self._directory / "scores.png",
            {when: headline[when] for when in ("before", "after") if when in headline},
            [r.name for r in self._config.reward.raters if f"score_{r.name}" in table.column_names],
            (self._config.mix.lowest_score, self._config.mix.highest_score),
        )


def _version(name: str) -> str:
    """vLLM comes under another name on machines without a GPU."""
    for package in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"
