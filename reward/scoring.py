"""Turn scorecards into training signals: combined scores, group statistics, advantages. Pure."""

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
    """Weights that combine rater scores."""

    total: Mapping[str, float]
    """Weight per rater of the total, the score that λ is computed from."""
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Weights of further combined scores, by name."""
    combine: str = "sum"
    """"sum" or "harmonic"."""

    def apply(self, card: Scorecard) -> dict[str, Score]:
        """Return every score of a card by name: first the raters' scores, then the combined ones, "total" last.

        A combined score that the card already holds (recorded with a pair) is kept.
        """
        scores = dict(card.scores)
        for name, weights in {**self.others, "total": self.total}.items():
            scores.setdefault(name, combine_scores(card.scores, weights, self.combine))
        return scores


@dataclass(frozen=True, kw_only=True)
class ScoredReply:
    """A reply with its scores and advantages."""

    reply: Reply
    card: Scorecard
    scores: Mapping[str, Score]
    """Rater scores and combined scores."""
    advantages: tuple[float | None, ...]
    """One per route; None where the reply gives that route no preference gradient."""

    @property
    def total(self) -> Score:
        return self.scores["total"]

    def number(self, name: str) -> float | None:
        """Return a score, or None if it is missing."""
        score = self.scores.get(name, UNRATED)
        return None if isinstance(score, MissingScore) else score


def combine_scores(scores: Mapping[str, Score], weights: Mapping[str, float], how: str) -> Score:
    """Return the weighted mean of the scores, arithmetic ("sum") or "harmonic", on the raters' scale.

    The result is missing if any score with a weight is missing (method §7, rule 1). A harmonic mean needs positive
    scores; otherwise it is missing with the rater at fault.
    """
    weighted: list[tuple[float, float]] = []
    for name, weight in weights.items():
        score = scores.get(name, UNRATED)
        if not weight:
            continue
        if isinstance(score, MissingScore):
            return score
        weighted.append((weight, score))
    total = sum(weight for weight, _ in weighted)
    if how == "sum":
        return sum(weight * score for weight, score in weighted) / total
    if how != "harmonic":
        raise ValueError(f"unknown combination {how!r}; allowed: {', '.join(COMBINATIONS)}")
    if any(score <= 0 for _, score in weighted):
        return MissingScore("score not positive in a harmonic mean", fault="rater")
    return total / sum(weight / score for weight, score in weighted)


def advantages(scores: Sequence[float], kind: str = "grpo") -> np.ndarray:
    """Return the advantages of n ≥ 2 replies of one group, float64 [n].

    Args:
        kind: "grpo": (R − mean) / (population standard deviation + 1e-4) (method §3). "dr_grpo": R − mean, which does
            not amplify nearly equal scores (Liu et al. 2025, arXiv 2503.20783). "rloo": R − mean of the other replies
            (Ahmadian et al. 2024, arXiv 2402.14740).
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
    """Return a group's replies with their scores and one advantage of the given kind per route.

    Each route is computed separately: a reply with a missing score does not enter mean and deviation. Fewer than two
    scores give no advantages (method §7, rule 1).
    """
    scores = [scoring.apply(card) for card in cards]
    columns = [
        _route_advantages([reply_scores.get(route.score, UNRATED) for reply_scores in scores], kind) for route in routes
    ]
    return [
        ScoredReply(
            reply=reply,
            card=card,
            scores=scores[index],
            advantages=tuple(column[index] for column in columns),
        )
        for index, (reply, card) in enumerate(zip(group.replies, cards, strict=True))
    ]


def _route_advantages(scores: Sequence[Score], kind: str) -> list[float | None]:
    present = {index: score for index, score in enumerate(scores) if not isinstance(score, MissingScore)}
    if len(present) < 2:
        return [None] * len(scores)
    found = dict(zip(present, advantages(list(present.values()), kind).tolist(), strict=True))
    return [found.get(index) for index in range(len(scores))]


def group_scores(scored: Sequence[ScoredReply]) -> list[float]:
    """Return the totals of a group, without missing ones."""
    return [reply.total for reply in scored if not isinstance(reply.total, MissingScore)]


def mean_scores(scored: Sequence[ScoredReply]) -> dict[str, float | None]:
    """Return the mean of each score over the replies that have it; None if no reply has it."""
    names = list(dict.fromkeys(name for reply in scored for name in reply.scores))
    present = {name: [n for reply in scored if (n := reply.number(name)) is not None] for name in names}
    return {name: float(np.mean(numbers)) if numbers else None for name, numbers in present.items()}


def missing_reasons(scored: Sequence[ScoredReply]) -> dict[str, int]:
    """Count missing rater scores by reason."""
    return dict(
        Counter(s.reason for reply in scored for s in reply.card.scores.values() if isinstance(s, MissingScore))
    )
