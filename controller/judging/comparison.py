"""How far a judge scores as people do. Pure.

What counts for training is the ranking within a prompt, from which advantages are made, and the variance within a
prompt, from which λ is (method §2). A correlation over all replies also counts which prompts are hard, and may be high
for a judge that cannot tell two replies to one prompt apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from controller.diagnosis.material import ScoredGroup
from controller.diagnosis.scores import SAME, agreement, variance
from controller.judging.ratings import Ratings
from controller.mix import MixSettings

NEAR = 1.0
"""Points on the scale within which a judge counts as near."""
ROUNDING = 1e-9
HUMAN = "human"
JUDGE = "judge"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of scores within a prompt."""

    variance: float | None
    """Population variance, mean over prompts with at least two scores; None when there is no such prompt."""
    alike: float | None
    """Share of these prompts whose replies all have the same score."""
    raw: float | None
    """λ before smoothing that the scores would give: mean of λ_max · g · v (method §2)."""
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A judge against people, over the replies that both rated."""

    judge: str
    both: int
    missing: int
    """Replies that people rated and the judge did not."""
    pearson: float | None
    """Over all replies; None where either is constant, as for all correlations."""
    spearman: float | None
    within_spearman: float | None
    """Spearman's ρ of each prompt's replies, mean over prompts in which both vary."""
    within_spearman_margin: float | None
    """Half width of the 95 % interval of that mean; None with fewer than two prompts."""
    within_kendall: float | None
    """Kendall's τ-b, in the same way."""
    within_prompts: int
    """Prompts that this is a mean over."""
    unused: dict[str, int]
    """The others, by reason."""
    bias: float | None
    """Mean of judge − human."""
    near: float | None
    """Share of replies whose two scores differ by no more than `NEAR`."""
    human: Spread
    """Of the replies that both rated, as for the next."""
    own: Spread


def compare(ratings: Ratings, judge: str, settings: MixSettings) -> Comparison:
    human, own = ratings.human, ratings.judges[judge]
    both = ~np.isnan(human) & ~np.isnan(own)
    groups = _groups(ratings, {HUMAN: np.where(both, human, np.nan), JUDGE: np.where(both, own, np.nan)})
    within = agreement(groups, JUDGE, HUMAN)
    difference = own[both] - human[both]
    return Comparison(
        judge=judge,
        both=int(both.sum()),
        missing=int((~np.isnan(human) & np.isnan(own)).sum()),
        pearson=_correlation(stats.pearsonr, human[both], own[both]),
        spearman=_correlation(stats.spearmanr, human[both], own[both]),
        within_spearman=within.spearman,
        within_spearman_margin=within.spearman_margin,
        within_kendall=within.kendall,
        within_prompts=within.groups,
        unused={_reason(reason): count for reason, count in within.unused.items()},
        bias=float(difference.mean()) if len(difference) else None,
        near=float((np.abs(difference) <= NEAR + ROUNDING).mean()) if len(difference) else None,
        human=_spread(groups, HUMAN, settings),
        own=_spread(groups, JUDGE, settings),
    )


def of_people(ratings: Ratings, settings: MixSettings) -> Spread:
    """Of all replies that people rated."""
    return _spread(_groups(ratings, {HUMAN: ratings.human}), HUMAN, settings)


def _groups(ratings: Ratings, scores: dict[str, np.ndarray]) -> list[ScoredGroup]:
    ends = np.flatnonzero(np.diff(ratings.prompts)) + 1
    parts = {name: np.split(values, ends) for name, values in scores.items()}
    return [
        ScoredGroup(iteration=0, prompt_id=str(place), scores={name: parts[name][place] for name in parts})
        for place in range(len(ends) + 1)
    ]


def _spread(groups: list[ScoredGroup], name: str, settings: MixSettings) -> Spread:
    found = variance(groups, name, settings)
    return Spread(variance=found["variance"], alike=found["constant"], raw=found["alone"], prompts=int(found["groups"]))


def _correlation(of: Callable, human: np.ndarray, own: np.ndarray) -> float | None:
    if len(human) < 2 or np.var(human) < SAME or np.var(own) < SAME:
        return None
    return float(of(human, own)[0])


def _reason(reason: str) -> str:
    """In words that fit a judge and people."""
    return reason.replace("rater constant", "judge constant").replace("reference constant", "people constant")
