"""λ, the mix ratio between preference and anchor, measured from the rollouts (method §2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """The constants of λ. `configs/playground.yaml` and `controller.config.Mix` explain each."""

    mode: str
    fixed: float
    largest: float
    slope: float
    threshold: float
    lowest_score: float
    highest_score: float
    smoothing: float

    @property
    def largest_variance(self) -> float:
        """The largest population variance on the scale: half of the scores at either end."""
        return ((self.highest_score - self.lowest_score) / 2.0) ** 2


@dataclass(frozen=True, kw_only=True)
class MixReading:
    """What λ was made of in one iteration; means over groups."""

    mix: float
    """λ for this iteration's step."""
    raw: float | None
    """Before smoothing; None, as the gates, when nothing was measured."""
    gate_quality: float | None
    """g: is any reply of the group good?"""
    gate_information: float | None
    """v: do the replies of the group differ?"""


def gates(scores: Sequence[float], settings: MixSettings) -> tuple[float, float]:
    """(g, v) of one group's scores: g = sigmoid(k (max R − threshold)), v = clip(Var R / largest variance, 0, 1)."""
    information = float(np.clip(np.var(scores) / settings.largest_variance, 0.0, 1.0))
    quality = 1.0 / (1.0 + math.exp(-settings.slope * (max(scores) - settings.threshold)))
    return quality, information


class MixRatio:
    """λ over a run: one value for the whole job, one update an optimiser step."""

    def __init__(self, settings: MixSettings, state: float | None = None) -> None:
        """state: the smoothed λ of the step before; None at the start of a run."""
        self._settings = settings
        self.state = state

    def update(self, groups: Sequence[Sequence[float]]) -> MixReading:
        """λ from the scores of this iteration's groups, those with at least two scores.

        Without any such group nothing was measured, and a smoothed λ stays what it was.
        """
        s = self._settings
        measured = [gates(scores, s) for scores in groups if len(scores) >= 2]
        quality = float(np.mean([g for g, _ in measured])) if measured else None
        information = float(np.mean([v for _, v in measured])) if measured else None
        raw = float(np.mean([s.largest * g * v for g, v in measured])) if measured else None
        if s.mode == "fixed":
            mix = s.fixed
        elif raw is None:
            mix = self.state if self.state is not None else 0.0
        else:
            mix = raw if self.state is None else (1.0 - s.smoothing) * raw + s.smoothing * self.state
            self.state = mix
        return MixReading(mix=mix, raw=raw, gate_quality=quality, gate_information=information)
