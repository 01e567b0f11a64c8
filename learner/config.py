"""Learner configuration: ranks, adapters and constants of the loss. Importable without torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learner.micro_batches import Item, TrainingPair, TrainingSample
from speech.vocabulary import select
from weight_sync.update import Exchange


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    r: int
    """Rank of the adapters."""
    lora_alpha: float
    target_modules: tuple[str, ...]
    """Shell-style patterns of the names of linear layers that get an adapter."""

    @property
    def scale(self) -> float:
        return self.lora_alpha / self.r


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Settings of every rank of a group."""

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
    """Linear warm-up, in steps."""
    steps: int
    """Length of the schedule, in steps."""
    final_rate: float
    """Learning rate at the end of the cosine, relative to the peak. 1: constant."""
    packing: bool
    """Pack rows into one sequence instead of padding them."""
    gradient_checkpointing: bool
    threads: int
    temperature: float
    """The sampler's: the learner scores the same distribution."""
    frozen: tuple[str, ...]
    """Shell-style patterns of the names of parameters that are not trained."""
    gpu: bool
    """True if Ray assigned a GPU to the rank. Otherwise it uses the CPU, even on a node with GPUs."""
    lora: LoraConfig | None = None
    """Adapters to train instead of the weights. None: train the weights."""
    trust_remote_code: bool = False
    """Allow code that comes with the checkpoint to run."""
    exchange: Exchange = "shm"
    """Transport of the weights to the workers."""
    folder: Path | None = None
    """This run's folder for weights; used with exchange "filesystem"."""


@dataclass(frozen=True, kw_only=True)
class RouteLoss:
    """The tokens that a score trains. The rows carry the score as an advantage."""

    channel: str
    """A token selection of `speech.vocabulary`."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """The constants of DPO (method §5)."""

    channel: str
    """A token selection of `speech.vocabulary`: the tokens whose log-probabilities are compared."""
    beta: float


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The constants of the loss (method §3, §4, §5)."""

    routes: tuple[RouteLoss, ...]
    clip: float
    clip_high: float
    ratio: str
    cap: float
    """Maximum importance weight of a token, for the truncated ratio."""
    kl_text: float
    """KL coefficient of the text channel."""
    kl_speech: float
    """KL coefficient of the speech channel."""
    boundary: str
    """Channel of begin- and end-of-speech tokens: "text" or "speech"."""
    anchor_text: float
    anchor_speech: float
    pairs: PairLoss | None = None
    """Set if the batch has preference pairs."""

    @property
    def needs_reference(self) -> bool:
        return self.kl_text > 0 or self.kl_speech > 0 or self.pairs is not None

    def scored(self, channels: np.ndarray, item: Item, row: TrainingSample) -> np.ndarray:
        """Select the tokens of a row that carry a loss and need a log-probability: bool [T] (method §7, rule 8)."""
        if isinstance(item, TrainingPair):
            names = [self.pairs.channel] if self.pairs else []
        elif row.anchor_weight:
            names = [n for n, weight in (("text", self.anchor_text), ("speech", self.anchor_speech)) if weight]
        else:
            names = [route.channel for route, weight in zip(self.routes, row.weights, strict=True) if weight]
            names += [n for n, beta in (("text", self.kl_text), ("speech", self.kl_speech)) if beta]
        masks = [select(channels, name, boundary=self.boundary) for name in names]
        return np.logical_or.reduce(masks) if masks else np.zeros(len(channels), dtype=bool)
