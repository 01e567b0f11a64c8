"""From a measure to a score: a straight line through two points, cut off at the ends of 1..5. Pure."""

import math
from dataclasses import dataclass

from speech.errors import InputError

LOWEST, HIGHEST = 1.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """What measure is worth a 1, and what a 5; between them the score goes in proportion, and beyond it stays."""

    one: float
    five: float

    def __post_init__(self) -> None:
        for name in ("one", "five"):
            number(name, getattr(self, name))
        if self.one == self.five:
            raise InputError(f"one, five: both are {self.one}; a measure that is worth both says nothing")

    def score(self, measure: float) -> float:
        share = (measure - self.one) / (self.five - self.one)
        return LOWEST + (HIGHEST - LOWEST) * min(max(share, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A range in which a measure is good, and how far outside it is as bad as can be."""

    low: float
    high: float
    tolerance: float

    def __post_init__(self) -> None:
        for name in ("low", "high", "tolerance"):
            number(name, getattr(self, name))
        if self.low > self.high:
            raise InputError(f"low: {self.low} must not be above high, {self.high}")
        if self.tolerance <= 0:
            raise InputError(f"tolerance: {self.tolerance} must be above 0")

    def score(self, measure: float) -> float:
        """5 within the range, 1 from `tolerance` outside it on, in proportion between."""
        outside = max(self.low - measure, measure - self.high, 0.0)
        return Anchors(one=self.tolerance, five=0.0).score(outside)


def number(name: str, value: object) -> float:
    """Raises InputError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name}: {value!r} must be a number")
    return float(value)
