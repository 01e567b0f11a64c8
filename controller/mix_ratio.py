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
        """The largest population variance on the scale: half of the scores at either end."""
        return ((self.score_max - self.score_min) / 2.0) ** 2


@dataclass(frozen=True, kw_only=True)
class MixRatioStats:
    """What λ was made of in one iteration; means over groups."""

    mix: float
    """λ for this iteration's step."""
    raw: float | None
    """Before smoothing; None, as the gates, when nothing was measured."""
    gate_quality: float | None
    """g: is any reply of the group good?"""
    gate_information: float | None
    """v: do the replies of the group differ?"""
    overridden: bool
    """Whether somebody set λ from outside (`duet set-lambda`)."""
    shares: list[float]
    """What each group's preference counts relative to the others, mean 1: its own λ over their mean in per-group mode,
    else 1."""


@dataclass
class MixRatioState:
    """What λ must remember from one step to the next; kept in every checkpoint."""

    smoothed: float | None = None
    """The moving average; None until something was measured."""
    updates: int = 0
    override: float | str | None = None
    """A λ, or a mode, set from outside in place of the configured mode; in force until another is set."""


def gates(scores: Sequence[float], settings: MixRatioConfig) -> tuple[float, float]:
    """(g, v) of one group's scores: g = sigmoid(k (max R − threshold)), v = clip(Var R / largest variance, 0, 1)."""
    information = float(np.clip(np.var(scores) / settings.max_variance, 0.0, 1.0))
    quality = float(expit(settings.gate_slope * (max(scores) - settings.gate_threshold)))
    return quality, information


class MixRatio:
    """λ over a run: one value for the whole job, one update an optimiser step.

    It is measured and averaged in every mode, so that the record shows it and `adaptive` can take over at any time.
    """

    def __init__(self, settings: MixRatioConfig, state: MixRatioState | None = None) -> None:
        """state: of the checkpoint to go on from; None at the start of a run."""
        self._settings = settings
        self.state = state or MixRatioState(smoothed=settings.initial)

    def obey(self, request: object) -> float | str:
        """Overrides λ as a request says, {"kind": "mix", "value": 0.3}. Returns the value. Raises ValueError for any
        other request."""
        if not isinstance(request, dict) or set(request) != {"kind", "value"} or request["kind"] != "mix":
            raise ValueError(f'{request!r} is no request that is known; expected {{"kind": "mix", "value": 0.3}}')
        value = request["value"]
        if isinstance(value, bool) or not isinstance(value, float | int | str):
            raise ValueError(f"λ = {value!r} is neither a number nor a mode")
        self.override(value)
        return value

    def override(self, wanted: float | str) -> None:
        """From the next update on, λ is this number, or follows this mode. Raises ValueError for what cannot be."""
        if isinstance(wanted, str):
            if wanted not in MODES:
                raise ValueError(f"unknown mode {wanted!r}; allowed: {', '.join(MODES)}")
            self.state.override = None if wanted == self._settings.schedule else wanted
        elif not 0.0 <= wanted <= 1.0:
            raise ValueError(f"λ = {wanted} is outside [0, 1]")
        else:
            self.state.override = wanted

    def update(self, groups: Sequence[Sequence[float]]) -> MixRatioStats:
        """λ from the scores of this iteration's groups, those with at least two scores.

        Without any such group nothing was measured, and the moving average stays what it was.
        """
        s, state = self._settings, self.state
        measured = [gates(scores, s) if len(scores) >= 2 else None for scores in groups]
        found = [pair for pair in measured if pair is not None]
        raw = [s.max * g * v for g, v in found]
        before = state.smoothed
        if raw:
            state.smoothed = self._smooth(float(np.mean(raw)), before)
        state.updates += 1
        mix, shares = self._choose(), [1.0] * len(groups)
        if s.per_group and self._mode == "adaptive" and mix > 0:
            # A group in which nothing was measured, and that trains all the same by another score, counts as the mean.
            own = iter([self._smooth(value, before) / mix for value in raw])
            shares = [1.0 if pair is None else next(own) for pair in measured]
        return MixRatioStats(
            mix=mix,
            raw=float(np.mean(raw)) if raw else None,
            gate_quality=float(np.mean([g for g, _ in found])) if found else None,
            gate_information=float(np.mean([v for _, v in found])) if found else None,
            overridden=state.override is not None,
            shares=shares,
        )

    def _smooth(self, raw: float, before: float | None) -> float:
        decay = self._settings.ema_decay
        return raw if before is None else (1.0 - decay) * raw + decay * before

    @property
    def _mode(self) -> float | str:
        return self._settings.schedule if self.state.override is None else self.state.override

    def _choose(self) -> float:
        """λ of this step."""
        s, state, mode = self._settings, self.state, self._mode
        if not isinstance(mode, str):
            return mode
        if mode == "fixed":
            return s.value
        if mode == "two_stage":
            return 0.0 if state.updates <= s.warmup_steps else s.value
        return state.smoothed if state.smoothed is not None else 0.0
