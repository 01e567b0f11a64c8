"""A rollout worker: the Ray actor around one engine. Moves data between Ray and the engine, nothing else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from cluster.monitored_actor import MonitoredActor
from cluster.waiting import ActorUnusable
from rollout.metrics_server import bind_port, serve_metrics
from rollout.vllm_engine import EngineConfig, PartialWeightUpdate, RolloutRequest, SamplingConfig, VllmEngine
from speech.families import Family
from speech.types import Prompt, Reply
from speech.vocabulary import Vocabulary
from weight_sync.receiver import fetch_files
from weight_sync.update import WeightUpdate

if TYPE_CHECKING:
    from rollout.multistream_engine import MultiStreamEngine


@dataclass(frozen=True, kw_only=True)
class WeightCheck:
    """Sequences whose log-probabilities must be equal on the learner and on every worker."""

    sequences: list[np.ndarray]
    """int32 [L] each."""
    logps: list[np.ndarray]
    """float32 [L − 1] each: the learner's, under the full distribution, without tokens of the first step."""


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """Report of a worker that took new weights."""

    version: int
    logprob_diff: float
    """Largest |worker − learner| over the tokens of the weight check."""
    seconds: float
    metrics: str | None = None
    """Address of the engine's metrics server (`rollout.metrics_server.serve_metrics`); None: no server."""


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """Result of `RolloutWorker.run_for`."""

    replies: list[tuple[int, Reply]]
    """Finished replies, each with the number of its request."""
    rejected: list[tuple[int, str]]
    """Numbers of requests that the engine rejected, with the reason."""


class RolloutWorker(MonitoredActor):
    """Holds an engine, the version of its weights and the newest mix ratio."""

    def __init__(
        self, name: str, config: EngineConfig, family: Family, seed: int, metrics_host: str, home: str
    ) -> None:
        """metrics_host: `metrics.host` of the configuration. home: IP address of the controller's machine."""
        super().__init__()
        vocabulary = Vocabulary.from_checkpoint(Path(config.checkpoint), family.tokens)
        self._name = name
        self._engine: VllmEngine | MultiStreamEngine
        listener = None
        if family.streams > 1:
            from rollout import multistream_engine  # imports torch

            self._engine = multistream_engine.MultiStreamEngine(config, family, vocabulary)
        else:
            self._engine = VllmEngine(config, family, vocabulary, seed)
            listener = bind_port(metrics_host, ray.util.get_node_ip_address(), home)  # the metrics are vLLM's
        self._mix: float | None = None
        self._metrics = serve_metrics(listener)

    def warm_up(self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig) -> str:
        """Generate once, so that the first batch does not wait for compilation. Return the worker's name."""
        self._engine.generate(prompts, group_size, sampling, list(range(len(prompts))), self._name)
        return self._name

    def run_for(self, requests: list[RolloutRequest], duration_s: float) -> RolloutResult:
        """Add requests, then generate for a duration, or until no reply is running."""
        rejected = []
        with self._engine_errors():
            for request in requests:
                try:
                    self._engine.submit([request])
                except ValueError as error:  # caused by this request, not by the engine
                    rejected.append((request.number, repr(error)))
            try:
                return RolloutResult(replies=self._engine.run_for(duration_s, self._name), rejected=rejected)
            except Exception:  # the pool requeues all requests of this worker, so none may continue here
                self._engine.abort_all()
                raise

    def abort_all(self) -> None:
        """Abort all requests."""
        with self._engine_errors():
            self._engine.abort_all()

    def update(self, parcel: WeightUpdate, mix: float | None, probe: WeightCheck) -> SyncReport:
        """Take new weights and the mix ratio, and compare log-probabilities with the learner's. Raise SyncInterrupted
        if a broadcast broke off."""
        start = time.perf_counter()
        with self._engine_errors():
            if parcel.call is not None and isinstance(self._engine, VllmEngine):
                self._engine.take_broadcast(parcel, self._name)
            else:
                files = fetch_files(parcel, self._name)
                self._engine.load_weights(files, parcel.version, whole=parcel.whole, scale=parcel.scale)
            self._mix = mix
            own = self._engine.probe(probe.sequences)
        diffs = [np.abs(mine - theirs).max() for mine, theirs in zip(own, probe.logps, strict=True)]
        # np.max keeps not-a-number; Python's max may drop it.
        return SyncReport(
            version=self._engine.weight_version,
            logprob_diff=float(np.max(diffs)),
            seconds=time.perf_counter() - start,
            metrics=self._metrics,
        )

    def state(self) -> dict[str, object]:
        """Return name, weight version, mix ratio and metrics address."""
        version = self._engine.weight_version
        return {"name": self._name, "weight_version": version, "mix": self._mix, "metrics": self._metrics}

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """Raise ActorUnusable for errors of a dead engine and for partial weight updates."""
        try:
            yield
        except Exception as error:  # calls to a dead engine fail in many ways
            exit_reason = self._engine.exit_reason(error)
            if isinstance(error, PartialWeightUpdate) and exit_reason is None:
                raise ActorUnusable(f"{self._name}: {error}") from error
            if exit_reason is None:
                raise
            raise ActorUnusable(f"{self._name} has lost its engine: {exit_reason}") from error
