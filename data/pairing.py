"""Which two replies to a prompt make a preference pair: the best and the worst, when they are far enough apart. Pure.

Method §5: kept when u_best − u_worst ≥ margin; equals in u are told apart by further scores, in order. A reply without
a score is neither good nor bad: it never takes part (method §7, rule 1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

Number = float | None
"""A score, or None where it is missing."""
SLACK = 1e-6
"""Scores nearer than this are equal, so that 4.2 − 3.7 is a gap of 0.5 in float32 as well (scale 1..5)."""


class PairRefusal(StrEnum):
    """Why a prompt gives no pair. A few fixed words each, to count by."""

    TOO_FEW = "fewer than two scored replies"
    """Or, when the best one is given, no score for it or none for any other."""
    SMALL_GAP = "gap below the margin"
    IDENTICAL = "best and worst have the same tokens"


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A finished, well-formed reply that could be in a pair."""

    label: str
    """Names the reply among those to its prompt."""
    ids: np.ndarray
    """int32 [T], end-of-reply token included."""
    score: Number
    """The score that decides, u."""
    scores: Mapping[str, float]
    """All scores that exist, by name."""


def choose_pair(
    scores: Sequence[Number], ties: Sequence[Sequence[Number]], margin: float, *, best: int | None = None
) -> tuple[int, int] | None:
    """Indices (best, worst), or None when there is no pair. See `decide_pair`, which says why as well."""
    decision = decide_pair(scores, ties, margin, best=best)
    return None if isinstance(decision, PairRefusal) else decision


def decide_pair(
    scores: Sequence[Number], ties: Sequence[Sequence[Number]], margin: float, *, best: int | None = None
) -> tuple[int, int] | PairRefusal:
    """Indices (best, worst) of the scored replies to one prompt, or why there are none.

    scores: u by reply; None and what is not finite take no part.
    ties: by reply, the scores that decide among equals in u, most important first. Where one is missing, a reply that
        has it goes before for either role: a missing score never makes a reply best or worst. Full equals
        go by their order: the first is the best, the last the worst.
    margin: smallest u_best − u_worst, at least 0.
    best: the index of the better reply where it is given (a demonstration); the worst is then found among the others.
    Raises ValueError for a negative margin, or when `ties` are not one row a reply, all of one length.
    """
    if margin < 0:
        raise ValueError(f"a margin is at least 0, not {margin}")
    if len(ties) != len(scores) or len({len(row) for row in ties}) > 1:
        raise ValueError(f"{len(scores)} replies need as many rows of tie scores, all of one length; got {ties}")
    scored = {index: score for index, score in enumerate(scores) if score is not None and math.isfinite(score)}
    others = [index for index in scored if index != best]
    if not others or (best is None and len(others) < 2) or (best is not None and best not in scored):
        return PairRefusal.TOO_FEW
    if best is None:
        top = max(scored.values())
        equals = [index for index in others if scored[index] >= top - SLACK]
        best = max(equals, key=lambda index: (_rank(ties[index], lambda value: value), -index))
        others.remove(best)
    bottom = min(scored[index] for index in others)
    equals = [index for index in others if scored[index] <= bottom + SLACK]
    worst = max(equals, key=lambda index: (_rank(ties[index], lambda value: -value), index))
    if scored[best] - scored[worst] < margin - SLACK:
        return PairRefusal.SMALL_GAP
    # With a margin of 0, equals in every score would be told apart by nothing but their order.
    if scored[best] - scored[worst] <= SLACK and list(ties[best]) == list(ties[worst]):
        return PairRefusal.SMALL_GAP
    return best, worst


def pick_best(candidates: Sequence[Candidate], ties: Sequence[str], margin: float) -> tuple[int, int] | PairRefusal:
    """`decide_pair` for the candidates of one prompt, ties by name. The same tokens twice are no pair, however
    scored."""
    rows = [[candidate.scores.get(name) for name in ties] for candidate in candidates]
    decision = decide_pair([candidate.score for candidate in candidates], rows, margin)
    if isinstance(decision, PairRefusal):
        return decision
    best, worst = decision
    same = np.array_equal(candidates[best].ids, candidates[worst].ids)
    return PairRefusal.IDENTICAL if same else decision


def _rank(row: Sequence[Number], value: Callable[[float], float]) -> tuple[float, ...]:
    return tuple(value(number) if number is not None and math.isfinite(number) else -math.inf for number in row)
