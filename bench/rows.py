"""A line of the table of measurements: a ratio, what it should be, and whether it is."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SIGNS = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True)
class BenchRow:
    """One ratio, taken in one run on one machine."""

    name: str
    ratio: float
    """Median over repetitions."""
    goal: str
    """"≥ 0.95" or "≤ 3"; empty for a number that is only shown beside the others."""
    met: bool
    spread: tuple[float, float]
    """Smallest and largest of the repetitions."""


def row(name: str, ratios: Sequence[float], goal: str) -> BenchRow:
    """A line from repeated ratios."""
    ratio = median(ratios)
    return BenchRow(name=name, ratio=ratio, goal=goal, met=met(ratio, goal), spread=(min(ratios), max(ratios)))


def met(ratio: float, goal: str) -> bool:
    """Whether a ratio is as the goal says; true where there is none."""
    sign, _, bound = goal.partition(" ")
    return not goal or SIGNS[sign](ratio, float(bound))
