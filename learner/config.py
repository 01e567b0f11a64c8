"""What a learner is told: settings of its ranks and adapters, the constants of its loss. Importable without torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learner.micro_batches import Item, TrainingPair, TrainingSample
from speech.vocabulary import select
from weight_sync.update import Exchange


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Linear layers that get an adapter, as shell-style patterns of their names."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What every rank of a group is started with."""

    checkpoint: str
    run: str
    dtype: str
    """"float32" or "bfloat16"."""
    zero_stage: int
    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    gradient_clip: float
    warmup: int
    """Steps of linear warm-up."""
    steps: int
    """Length of the schedule."""
    final_rate: float
    """Learning rate at the end of the cosine, as a share of the highest; 1 keeps it constant."""
    packing: bool
    """Whether rows lie one behind another instead of being padded."""
    gradient_checkpointing: bool
    threads: int
    temperature: float
    """Of the sampler: the learner scores the same distribution."""
    frozen: tuple[str, ...]
    """Patterns of parameter names that are not trained."""
    gpu: bool
    """Whether Ray gave the rank a GPU; without, it stays on the CPU even where there is one."""
    lora: LoraConfig | None = None
    """Adapters that are trained in place of the weights; None: none."""
    trust_remote_code: bool = False
    """Whether code that comes with the checkpoint may be run."""
    exchange: Exchange = "shm"
    """How weights reach the workers."""
    folder: Path | None = None
    """Of this run, for weights alone; with exchange "filesystem"."""


@dataclass(frozen=True, kw_only=True)
class RouteLoss:
    """Which tokens a score trains. The score itself has become an advantage by now."""

    channel: str
    """A selection of `speech.vocabulary`."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """The constants of DPO (method §5)."""

    channel: str
    """A selection of `speech.vocabulary`: the tokens whose log-probabilities are compared."""
    beta: float


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The constants of the loss (method §3, §4, §5)."""

    routes: tuple[RouteLoss, ...]
    clip: float
    clip_high: float
    ratio: str
    cap: float
    """Largest importance weight of a token, for the truncated ratio."""
    kl_text: float
    """β of the text channel."""
    kl_speech: float
    boundary: str
    """The channel that begin- and end-of-speech tokens train with."""
    anchor_text: float
    anchor_speech: float
    pairs: PairLoss | None = None
    """Set when replies come in pairs."""

    @property
    def needs_reference(self) -> bool:
        return self.kl_text > 0 or self.kl_speech > 0 or self.pairs is not None

    def scored(self, channels: np.ndarray, item: Item, row: TrainingSample) -> np.ndarray:
        """bool [T]: the tokens of a row that carry a loss, whose log-probabilities are needed (method §7, rule 8)."""
        if isinstance(item, TrainingPair):
            names = [self.pairs.channel] if self.pairs else []
        elif row.anchor_weight:
            names = [n for n, weight in (("text", self.anchor_text), ("speech", self.anchor_speech)) if weight]
        else:
            names = [route.channel for route, weight in zip(self.routes, row.weights, strict=True) if weight]
            names += [n for n, beta in (("text", self.kl_text), ("speech", self.kl_speech)) if beta]
        masks = [select(channels, name, boundary=self.boundary) for name in names]
        return np.logical_or.reduce(masks) if masks else np.zeros(len(channels), dtype=bool)
