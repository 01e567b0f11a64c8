"""From scorecards to what trains: totals, group statistics, advantages, and what had to be dropped. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reward.rater import Missing, Score, Scorecard
from speech.records import Group, Reply

EPSILON = 1e-4
"""Added to a group's standard deviation (method §3)."""


@dataclass(frozen=True, kw_only=True)
class RouteSettings:
    """One row of the routing table: which score trains which tokens, and how strongly."""

    score: str
    """"total", or a rater's name."""
    channel: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A reply with its scores and what they make of it."""

    reply: Reply
    card: Scorecard
    total: Score
    advantages: tuple[float, ...] | None
    """One a route; None when the reply gives no preference gradient."""


def total_score(card: Scorecard, weights: dict[str, float]) -> Score:
    """Weighted mean of the raters' scores. Missing as soon as one that counts is missing (method §7, rule 1)."""
    total = 0.0
    for name, weight in weights.items():
        score = card.scores[name]
        if not weight:
            continue
        if isinstance(score, Missing):
            return score
        total += weight * score
    return total / sum(weights.values())


def advantages(scores: Sequence[float]) -> np.ndarray:
    """float64 [n]: (R − mean) / (population standard deviation + 1e-4) within a group (method §3)."""
    values = np.asarray(scores, dtype=np.float64)
    return (values - values.mean()) / (values.std() + EPSILON)


def judge(
    group: Group, cards: Sequence[Scorecard], weights: dict[str, float], routes: Sequence[RouteSettings]
) -> list[Judged]:
    """A group's replies with totals and advantages.

    A reply with a missing score leaves its group's mean and deviation; a group with fewer than two scored replies
    has no advantages at all.
    """
    totals = [total_score(card, weights) for card in cards]
    by_route = [
        [total if r.score == "total" else card.scores[r.score] for total, card in zip(totals, cards, strict=True)]
        for r in routes
    ]
    scored = [
        index
        for index, total in enumerate(totals)
        if not isinstance(total, Missing) and not any(isinstance(scores[index], Missing) for scores in by_route)
    ]
    found: dict[int, tuple[float, ...]] = {}
    if len(scored) >= 2 and routes:
        columns = [advantages([scores[index] for index in scored]) for scores in by_route]
        found = {index: tuple(float(c[place]) for c in columns) for place, index in enumerate(scored)}
    return [
        Judged(reply=reply, card=card, total=total, advantages=found.get(index))
        for index, (reply, card, total) in enumerate(zip(group.replies, cards, totals, strict=True))
    ]


def group_scores(judged: Sequence[Judged]) -> list[float]:
    """The totals that a group has."""
    return [j.total for j in judged if not isinstance(j.total, Missing)]


def mean_scores(cards: Sequence[Scorecard]) -> dict[str, float | None]:
    """Mean by rater over the scores that exist; None when there is none."""
    names = list(dict.fromkeys(name for card in cards for name in card.scores))
    present = {name: [n for card in cards if (n := card.number(name)) is not None] for name in names}
    return {name: float(np.mean(numbers)) if numbers else None for name, numbers in present.items()}


def missing_reasons(cards: Sequence[Scorecard]) -> dict[str, int]:
    """How many scores are missing, by reason."""
    return dict(Counter(s.reason for card in cards for s in card.scores.values() if isinstance(s, Missing)))
