"""From scorecards to what trains: combined scores, group statistics, advantages. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from configs.routes import ScoreRoute
from configs.schema import ADVANTAGES, COMBINATIONS
from reward.types import MissingScore, Score, Scorecard
from speech.types import Reply, ReplyGroup

EPSILON = 1e-4
"""Added to a group's standard deviation (method §3)."""


UNRATED = MissingScore("not rated")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How raters' scores combine."""

    total: Mapping[str, float]
    """Weight by rater of the score that λ is measured from."""
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Further combined scores by name."""
    combine: str = "sum"
    """"sum" or "harmonic"."""

    def apply(self, card: Scorecard) -> dict[str, Score]:
        """Every score of a card by name: the raters' own, and those combined from them, "total" last.

        A combined score that is on the card already (recorded with a pair) stays as it is.
        """
        scores = dict(card.scores)
        for name, weights in {**self.others, "total": self.total}.items():
            scores.setdefault(name, combine_scores(card.scores, weights, self.combine))
        return scores


@dataclass(frozen=True, kw_only=True)
class ScoredReply:
    """A reply with its scores and what they make of it."""

    reply: Reply
    card: Scorecard
    scores: Mapping[str, Score]
    """The card's and the combined ones."""
    advantages: tuple[float | None, ...]
    """One a route; None where the reply gives that route no preference gradient."""

    @property
    def total(self) -> Score:
        return self.scores["total"]

    def number(self, name: str) -> float | None:
        """A score, or None where it is missing."""
        score = self.scores.get(name, UNRATED)
        return None if isinstance(score, MissingScore) else score


def combine_scores(scores: Mapping[str, Score], weights: Mapping[str, float], how: str) -> Score:
    """Weighted mean of the raters' scores, arithmetic ("sum") or "harmonic", on the raters' own scale.

    Missing as soon as one that counts is missing (method §7, rule 1). A harmonic mean exists for positive scores only;
    without, it is Missing by the rater's fault.
    """
    found: list[tuple[float, float]] = []
    for name, weight in weights.items():
        score = scores.get(name, UNRATED)
        if not weight:
            continue
        if isinstance(score, MissingScore):
            return score
        found.append((weight, score))
    total = sum(weight for weight, _ in found)
    if how == "sum":
        return sum(weight * score for weight, score in found) / total
    if how != "harmonic":
        raise ValueError(f"unknown combination {how!r}; allowed: {', '.join(COMBINATIONS)}")
    if any(score <= 0 for _, score in found):
        return MissingScore("score not positive in a harmonic mean", fault="rater")
    return total / sum(weight / score for weight, score in found)


def advantages(scores: Sequence[float], kind: str = "grpo") -> np.ndarray:
    """float64 [n], the advantages of n ≥ 2 replies of one group.

    "grpo": (R − mean) / (population standard deviation + 1e-4) (method §3). "dr_grpo": R − mean, which does not blow up
    nearly equal scores (Liu et al. 2025, arXiv 2503.20783). "rloo": R − mean of the others (Ahmadian et al. 2024,
    arXiv 2402.14740).
    """
    if kind not in ADVANTAGES:
        raise ValueError(f"unknown advantage {kind!r}; allowed: {', '.join(ADVANTAGES)}")
    values = np.asarray(scores, dtype=np.float64)
    centred = values - values.mean()
    if kind == "grpo":
        return centred / (values.std() + EPSILON)
    return centred * len(values) / (len(values) - 1) if kind == "rloo" else centred


def score_groups(
    group: ReplyGroup,
    cards: Sequence[Scorecard],
    scoring: ScoringConfig,
    routes: Sequence[ScoreRoute],
    kind: str = "grpo",
) -> list[ScoredReply]:
    """A group's replies with their scores and, by route, advantages of the given kind.

    For each route by itself: a reply whose score is missing leaves the group's mean and deviation, and with fewer than
    two scores there are no advantages at all (method §7, rule 1).
    """
    scores = [scoring.apply(card) for card in cards]
    columns = [_column([of_reply.get(route.score, UNRATED) for of_reply in scores], kind) for route in routes]
    return [
        ScoredReply(
            reply=reply,
            card=card,
            scores=scores[index],
            advantages=tuple(column[index] for column in columns),
        )
        for index, (reply, card) in enumerate(zip(group.replies, cards, strict=True))
    ]


def _column(scores: Sequence[Score], kind: str) -> list[float | None]:
    present = {index: score for index, score in enumerate(scores) if not isinstance(score, MissingScore)}
    if len(present) < 2:
        return [None] * len(scores)
    found = dict(zip(present, advantages(list(present.values()), kind).tolist(), strict=True))
    return [found.get(index) for index in range(len(scores))]


def group_scores(judged: Sequence[ScoredReply]) -> list[float]:
    """The totals that a group has."""
    return [j.total for j in judged if not isinstance(j.total, MissingScore)]


def mean_scores(judged: Sequence[ScoredReply]) -> dict[str, float | None]:
    """Mean by score over those that exist; None when there is none."""
    names = list(dict.fromkeys(name for j in judged for name in j.scores))
    present = {name: [n for j in judged if (n := j.number(name)) is not None] for name in names}
    return {name: float(np.mean(numbers)) if numbers else None for name, numbers in present.items()}


def missing_reasons(judged: Sequence[ScoredReply]) -> dict[str, int]:
    """How many of the raters' scores are missing, by reason."""
    return dict(Counter(s.reason for j in judged for s in j.card.scores.values() if isinstance(s, MissingScore)))
