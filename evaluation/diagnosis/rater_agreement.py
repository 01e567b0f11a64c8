"""Variance of scores within groups, and rank agreement of raters."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from common.errors import InputError
from controller.mix_ratio import MixRatioConfig, gates
from evaluation.diagnosis.page import Row, Section, Table
from evaluation.diagnosis.run_data import ScoredGroup

SAME = 1e-9
"""Variance below which a group's scores count as equal. A mean of equal float32 scores may round."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Rank agreement of a rater with the reference, within prompts."""

    rater: str
    groups: int
    """Number of groups in which both vary. Only these have ranks to compare."""
    spearman: float | None
    """Mean of Spearman's ρ over these groups. All means are None without such groups."""
    spearman_margin: float | None
    """Half width of the 95 % interval of the mean over groups. None with fewer than two."""
    kendall: float | None
    kendall_margin: float | None
    unused: dict[str, int]
    """Number of excluded groups, by reason."""


def agreement(groups: Sequence[ScoredGroup], rater: str, reference: str) -> Agreement:
    """Measure within-prompt rank agreement: Spearman's ρ and Kendall's τ-b per group, averaged over groups.

    Groups with a constant side have no ranks. They are counted in `unused`, never scored as 0.
    """
    pairs: list[tuple[float, float]] = []
    unused: Counter[str] = Counter()
    for group in groups:
        one, other = group.scores[rater], group.scores[reference]
        both = ~np.isnan(one) & ~np.isnan(other)
        one, other = one[both], other[both]
        constant = [name for name, values in ((rater, one), (reference, other)) if len(one) and np.var(values) < SAME]
        if len(one) < 2:
            unused["fewer than two replies with both scores"] += 1
        elif len(constant) == 2:
            unused["both constant"] += 1
        elif constant:
            unused["rater constant" if constant[0] == rater else "reference constant"] += 1
        else:
            pairs.append((float(stats.spearmanr(one, other)[0]), float(stats.kendalltau(one, other, variant="b")[0])))
    (spearman, spearman_margin), (kendall, kendall_margin) = (_mean(column) for column in _columns(pairs))
    return Agreement(
        rater=rater,
        groups=len(pairs),
        spearman=spearman,
        spearman_margin=spearman_margin,
        kendall=kendall,
        kendall_margin=kendall_margin,
        unused=dict(unused),
    )


def check_reference(groups: Sequence[ScoredGroup], reference: str) -> None:
    """Raise InputError if the run has no scores of `reference`."""
    if reference not in groups[0].scores:
        raise InputError(f"--reference: no scores of {reference!r}; this run has {', '.join(groups[0].scores)}")


def agreement_section(groups: Sequence[ScoredGroup], reference: str, weights: dict[str, float]) -> Section:
    """Return the section on rank agreement. weights: rater weights in `total`."""
    raters = [name for name in groups[0].scores if name != reference]
    found = [agreement(groups, rater, reference) for rater in raters]
    reasons = list(dict.fromkeys(reason for one in found for reason in one.unused))
    share = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    rows: list[Row] = [
        {
            "rater": one.rater,
            "share": share.get(one.rater, 0.0) if reference == "total" else None,
            "spearman": one.spearman,
            "spearman_margin": one.spearman_margin,
            "kendall": one.kendall,
            "kendall_margin": one.kendall_margin,
            "groups": one.groups,
            **{reason: one.unused.get(reason, 0) for reason in reasons},
        }
        for one in found
    ]
    columns = {
        "rater": "rater",
        "share": "weight in total",
        "spearman": "Spearman ρ",
        "spearman_margin": "± 95 %",
        "kendall": "Kendall τ-b",
        "kendall_margin": "± 95 %",
        "groups": "groups used",
        **{reason: f"not: {reason}" for reason in reasons},
    }
    if reference != "total":
        del columns["share"]
    ranked = sorted((one.spearman, one.rater) for one in found if one.spearman is not None)
    if not ranked:
        findings = [f"{reference} and another rater never both vary in the same group ({len(groups):,} groups)."]
    else:
        (low, least), (high, most) = ranked[0], ranked[-1]
        findings = [f"Nearest to {reference} within a prompt: {most} (Spearman {high:.2f})."]
        findings += [f"Farthest from it: {least} ({low:.2f})."] if least != most else []
    notes = [
        "Each group is one prompt in one iteration. The interval is that of the mean over groups (Student's t).",
        "Groups where either is constant have no ranking to compare. They are counted and not scored as 0. So "
        "the groups used differ between raters.",
        "A rater with few levels gives many replies the same rank, which keeps ρ and τ-b below 1 even where it never "
        "contradicts the reference.",
    ]
    if reference == "total":
        notes.append("The total contains the raters: their agreement with it is partly agreement with themselves.")
    brief = {name: heading for name, heading in columns.items() if name not in reasons}
    brief |= {"groups": "used"} | ({"share": "in total"} if "share" in brief else {})
    table = Table(
        name="agreement", caption=f"Agreement with {reference} within a prompt", columns=columns, rows=rows, brief=brief
    )
    return Section(title=f"Rank agreement with {reference}", findings=findings, tables=[table], notes=notes)


def variance_section(groups: Sequence[ScoredGroup], settings: MixRatioConfig) -> Section:
    """Return the section on within-group variance of every score, and the λ each would give alone (method §2)."""
    raters = list(groups[0].scores)
    whole: list[Row] = [{"rater": rater, **variance(groups, rater, settings)} for rater in raters]
    iterations = sorted({group.iteration for group in groups})
    by_iteration: list[Row] = [
        {"iteration": number, "rater": rater}
        | variance([group for group in groups if group.iteration == number], rater, settings)
        for number in iterations
        for rater in raters
    ]
    total = next(row for row in whole if row["rater"] == "total")
    if total["variance"] is None:
        findings = ["No group has two totals to compare."]
    else:
        findings = [
            f"The total varies by {total['variance']:.2f} within groups; in {total['constant']:.1%} of them all "
            "replies have the same total."
        ]
    columns = {
        "rater": "rater",
        "variance": "mean variance",
        "constant": "share of groups without variance",
        "open": "λ it would give with g = 1",
        "alone": "λ it would give with its own g",
        "groups": "groups",
        "unscored": "groups with fewer than two scores",
    }
    brief = {
        "rater": "rater",
        "variance": "variance",
        "constant": "all alike",
        "open": "λ if g = 1",
        "alone": "λ, own g",
        "groups": "groups",
    }
    return Section(
        title="Variance of scores within groups",
        findings=findings,
        tables=[
            Table(name="variance", caption="By rater, over the whole run", columns=columns, rows=whole, brief=brief),
            Table(name="variance_by_iteration", caption="By iteration", columns={}, rows=by_iteration, brief={}),
        ],
        plots=["variance.png"] if any(row["variance"] is not None for row in whole) else [],
        notes=[
            "Population variance of the scores that exist; groups with fewer than two are counted apart.",
            "The two λ are unsmoothed means over groups of λ_max · g · clip(variance / largest variance, 0, 1), as if "
            "the rater alone were the score R.",
        ],
    )


def variance(groups: Sequence[ScoredGroup], rater: str, settings: MixRatioConfig) -> Row:
    """Return means over groups with at least two scores, and group counts. Means are None without such groups.

    variance: population variance. constant: share of groups with equal scores. open: λ with g = 1. alone: λ with the
    rater's own g.
    """
    scored = [present for group in groups if len(present := group.present(rater)) >= 2]
    row: Row = {"variance": None, "constant": None, "open": None, "alone": None}
    if scored:
        opened = [gates(scores.tolist(), settings) for scores in scored]
        row = {
            "variance": float(np.mean([np.var(scores) for scores in scored])),
            "constant": float(np.mean([np.var(scores) < SAME for scores in scored])),
            "open": settings.max * float(np.mean([v for _, v in opened])),
            "alone": settings.max * float(np.mean([g * v for g, v in opened])),
        }
    return row | {"groups": len(scored), "unscored": len(groups) - len(scored)}


def _columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def _mean(values: list[float]) -> tuple[float | None, float | None]:
    """Return the mean and the half width of its 95 % interval."""
    if not values:
        return None, None
    if len(values) < 2:
        return values[0], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values: an interval of width 0
        margin = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(margin)
