"""A rollout worker: the Ray actor around one engine. It only moves data between Ray and `rollout.vllm_engine`."""

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
    """Sequences whose log-probabilities must be the same on the learner and on every worker."""

    sequences: list[np.ndarray]
    """int32 [L] each."""
    logps: list[np.ndarray]
    """float32 [L − 1] each: the learner's, under the full distribution, of all tokens but those of the first step."""


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """How a worker took new weights."""

    version: int
    probe_gap: float
    """Largest |worker − learner| over the probe's tokens."""
    seconds: float
    metrics: str | None = None
    """Where its engine's metrics are served, as `rollout.metrics_server.serve_metrics` says; None: nowhere."""


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """What a worker's turn brought."""

    replies: list[tuple[int, Reply]]
    """Those that came to their end, each with the number of its order."""
    refused: list[tuple[int, str]]
    """Numbers of orders that the engine does not take, with the reason."""


class RolloutWorker(MonitoredActor):
    """Holds an engine, the version of its weights and the mix ratio it was last told."""

    def __init__(
        self, name: str, settings: EngineConfig, family: Family, seed: int, metrics_host: str, home: str
    ) -> None:
        """metrics_host: of the configuration. home: the address of the controller's machine."""
        super().__init__()
        vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._name = name
        self._engine: VllmEngine | MultiStreamEngine
        where = None
        if family.streams > 1:
            from rollout import multistream_engine  # and with it torch

            self._engine = multistream_engine.MultiStreamEngine(settings, family, vocabulary)
        else:
            self._engine = VllmEngine(settings, family, vocabulary, seed)
            where = bind_port(metrics_host, ray.util.get_node_ip_address(), home)  # what is counted is vLLM's
        self._mix: float | None = None
        self._metrics = serve_metrics(where)

    def warm_up(self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig) -> str:
        """Samples once so that the first real batch does not pay for compilation. Returns the worker's name."""
        self._engine.sample(prompts, group_size, sampling, list(range(len(prompts))), self._name)
        return self._name

    def turn(self, orders: list[RolloutRequest], seconds: float) -> RolloutResult:
        """Takes up what is new, and draws for so long, or until nothing is under way."""
        refused = []
        with self._living():
            for order in orders:
                try:
                    self._engine.submit([order])
                except ValueError as error:  # of this order, not of the engine
                    refused.append((order.number, repr(error)))
            try:
                return RolloutResult(replies=self._engine.turn(seconds, self._name), refused=refused)
            except Exception:  # whatever it is: others will draw what was under way here, and it must not go on
                self._engine.abandon()
                raise

    def abandon(self) -> None:
        """Gives up everything that is under way."""
        with self._living():
            self._engine.abandon()

    def update(self, parcel: WeightUpdate, mix: float | None, probe: WeightCheck) -> SyncReport:
        """Takes new weights and the mix ratio, and measures how far the worker is from the learner on the probe. Raises
        Interrupted when a broadcast of them broke off."""
        start = time.perf_counter()
        with self._living():
            if parcel.call is not None and isinstance(self._engine, VllmEngine):
                self._engine.take_broadcast(parcel, self._name)
            else:
                files = fetch_files(parcel, self._name)
                self._engine.load_weights(files, parcel.version, whole=parcel.whole, scale=parcel.scale)
            self._mix = mix
            own = self._engine.probe(probe.sequences)
        gaps = [np.abs(mine - theirs).max() for mine, theirs in zip(own, probe.logps, strict=True)]
        # np.max lets not-a-number through, where Python's max may drop it.
        return SyncReport(
            version=self._engine.weight_version,
            probe_gap=float(np.max(gaps)),
            seconds=time.perf_counter() - start,
            metrics=self._metrics,
        )

    def state(self) -> dict[str, object]:
        version = self._engine.weight_version
        return {"name": self._name, "weight_version": version, "mix": self._mix, "metrics": self._metrics}

    @contextmanager
    def _living(self) -> Iterator[None]:
        """Raises MemberBroken for whatever fails because the engine is dead, or leaves it with half of its weights."""
        try:
            yield
        except Exception as error:  # an engine that is gone lets calls fail in many ways
            end = self._engine.ended(error)
            if isinstance(error, PartialWeightUpdate) and end is None:
                raise ActorUnusable(f"{self._name}: {error}") from error
            if end is None:
                raise
            raise ActorUnusable(f"{self._name} has lost its engine: {end}") from error
