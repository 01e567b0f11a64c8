"""λ, the mix ratio between preference and anchor, measured from the rollouts (method §2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict
from scipy.special import expit

from configs.schema import MODES, Config, MixRatioSection


class MixRatioConfig(MixRatioSection):
    """Section `mix_ratio` of the configuration, with the scale of the scores."""

    model_config = ConfigDict(frozen=True)

    score_min: float
    score_max: float

    @classmethod
    def from_config(cls, config: Config) -> "MixRatioConfig":
        scale = {"score_min": config.reward.score_min, "score_max": config.reward.score_max}
        return cls(**config.mix_ratio.model_dump(), **scale)

    @property
    def max_variance(self) -> float:
        """Largest population variance on the score scale: half of the scores at either end."""
        return ((self.score_max - self.score_min) / 2.0) ** 2


@dataclass(frozen=True, kw_only=True)
class MixRatioStats:
    """λ and its inputs in one iteration; means over groups."""

    mix: float
    """λ for this iteration's step."""
    raw: float | None
    """λ before smoothing; None, like the gates, if nothing was measured."""
    gate_quality: float | None
    """g: is any reply of the group good?"""
    gate_information: float | None
    """v: do the replies of the group differ?"""
    overridden: bool
    """True if λ was set by a request (`duet set-lambda`)."""
    group_weights: list[float]
    """Relative weight of each group's preference loss, mean 1: its own λ over their mean in per-group mode, else 1."""


@dataclass
class MixRatioState:
    """State of λ between steps; part of every checkpoint."""

    smoothed: float | None = None
    """Moving average; None before the first measurement."""
    updates: int = 0
    override: float | str | None = None
    """λ or mode set by a request. Replaces the configured mode until another is set."""


def gates(scores: Sequence[float], config: MixRatioConfig) -> tuple[float, float]:
    """Return (g, v) of one group's scores.

    g = sigmoid(k (max R − threshold)), v = clip(Var R / largest variance, 0, 1).
    """
    information = float(np.clip(np.var(scores) / config.max_variance, 0.0, 1.0))
    quality = float(expit(config.gate_slope * (max(scores) - config.gate_threshold)))
    return quality, information


class MixRatio:
    """λ over a run: one value for all groups, one update per optimizer step.

    It is measured and averaged in every mode, so that records show it and `adaptive` can start at any time.
    """

    def __init__(self, config: MixRatioConfig, state: MixRatioState | None = None) -> None:
        """state: state in a checkpoint; None at the start of a run."""
        self._config = config
        self.state = state or MixRatioState(smoothed=config.initial)

    def apply_request(self, request: object) -> float | str:
        """Override λ by a request, {"kind": "mix", "value": 0.3}. Return the value. Raise ValueError for any other
        request."""
        if not isinstance(request, dict) or set(request) != {"kind", "value"} or request["kind"] != "mix":
            raise ValueError(f'unknown request {request!r}; expected {{"kind": "mix", "value": 0.3}}')
        value = request["value"]
        if isinstance(value, bool) or not isinstance(value, float | int | str):
            raise ValueError(f"λ = {value!r} is neither a number nor a mode")
        self.set_override(value)
        return value

    def set_override(self, value: float | str) -> None:
        """Set λ, or its mode, from the next update on. Raise ValueError for other values."""
        if isinstance(value, str):
            if value not in MODES:
                raise ValueError(f"unknown mode {value!r}; allowed: {', '.join(MODES)}")
            self.state.override = None if value == self._config.schedule else value
        elif not 0.0 <= value <= 1.0:
            raise ValueError(f"λ = {value} is outside [0, 1]")
        else:
            self.state.override = value

    def update(self, groups: Sequence[Sequence[float]]) -> MixRatioStats:
        """Update λ from the scores of this iteration's groups. Groups with fewer than two scores are ignored; if all
        are, the moving average keeps its value."""
        s, state = self._config, self.state
        measured = [gates(scores, s) if len(scores) >= 2 else None for scores in groups]
        found = [pair for pair in measured if pair is not None]
        raw = [s.max * g * v for g, v in found]
        before = state.smoothed
        if raw:
            state.smoothed = self._smooth(float(np.mean(raw)), before)
        state.updates += 1
        mix, group_weights = self._current(), [1.0] * len(groups)
        if s.per_group and self._mode == "adaptive" and mix > 0:
            # A group without a measurement may train by another score; it gets the mean weight.
            own = iter([self._smooth(value, before) / mix for value in raw])
            group_weights = [1.0 if pair is None else next(own) for pair in measured]
        return MixRatioStats(
            mix=mix,
            raw=float(np.mean(raw)) if raw else None,
            gate_quality=float(np.mean([g for g, _ in found])) if found else None,
            gate_information=float(np.mean([v for _, v in found])) if found else None,
            overridden=state.override is not None,
            group_weights=group_weights,
        )

    def _smooth(self, raw: float, before: float | None) -> float:
        decay = self._config.ema_decay
        return raw if before is None else (1.0 - decay) * raw + decay * before

    @property
    def _mode(self) -> float | str:
        return self._config.schedule if self.state.override is None else self.state.override

    def _current(self) -> float:
        """Return λ of this step."""
        s, state, mode = self._config, self.state, self._mode
        if not isinstance(mode, str):
            return mode
        if mode == "fixed":
            return s.value
        if mode == "two_stage":
            return 0.0 if state.updates <= s.warmup_steps else s.value
        return state.smoothed if state.smoothed is not None else 0.0
