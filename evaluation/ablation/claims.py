"""Claims of the paper (method §9) and their verdicts from the comparison. Data and pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.ablation.bootstrap import LEVEL, Estimate, on_front
from evaluation.ablation.results import HEADLINE, AblationResults

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
METHOD = "adaptive"
Direction = Literal["higher", "lower", "open"]
_SIGNS: dict[str, Direction] = {">": "higher", "<": "lower", "?": "open"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Claim that one arm is higher or lower than another in a measure."""

    statement: str
    arm: str
    other: str | None
    """Arm to compare with. None: the same arm before training."""
    measure: str
    direction: Direction
    """Claimed direction of arm − other. open: no claim, only the difference is reported."""
    published: tuple[float, float] | None = None
    """Published numbers for arm and other, if the source gives both."""
    note: str = ""
    """Model or source of the published numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClaimResult:
    """Claim with its measured difference and verdict."""

    claim: Claim
    ours: tuple[float, float]
    """Means for arm and other."""
    difference: Estimate
    """Estimate of arm − other."""
    verdict: str
    minutes: float
    """Total duration of the runs used, in minutes."""


def _claim(statement: str, arm: str, sign: str, other: str | None, measure: str, *published: float, note: str = ""):
    return Claim(
        statement=statement,
        arm=arm,
        other=other,
        measure=measure,
        direction=_SIGNS[sign],
        published=(published[0], published[1]) if published else None,
        note=note,
    )


_VITA = "VITA-Audio"
_CENTRAL = "Central claim: at equal steps, preference on all tokens damages the voice"
_ALPO = "ALPO: each score on its own tokens beats the hybrid"
_SPLIT = "Is it dilution or noise: preference on speech too, with its own normaliser"

CLAIMS = (
    _claim(f"{_CENTRAL} (fixed λ)", "fixed_full", "<", "fixed_text", "eq", 2.48, 2.60, note=_VITA),
    _claim(f"{_CENTRAL} (adaptive λ)", "adaptive_full", "<", "adaptive", "eq", 2.50, 2.92, note=_VITA),
    _claim(f"{_CENTRAL} (fixed λ, by the words that are heard)", "fixed_full", "<", "fixed_text", "heard"),
    _claim(f"{_CENTRAL} (adaptive λ, by the words that are heard)", "adaptive_full", "<", "adaptive", "heard"),
    _claim(
        "Preference on text answers better (fixed λ)", "fixed_text", ">", "fixed_full", "iq", 52.60, 48.70, note=_VITA
    ),
    _claim(
        "Preference on text answers better (adaptive λ)",
        "adaptive",
        ">",
        "adaptive_full",
        "iq",
        55.24,
        48.84,
        note=_VITA,
    ),
    _claim("Less preference answers worse", "fixed_text_03", "<", "fixed_text", "iq", 49.94, 52.60, note=_VITA),
    _claim("Less preference sounds better", "fixed_text_03", ">", "fixed_text", "eq", 2.72, 2.60, note=_VITA),
    _claim("The moving average answers better", "adaptive", ">", "adaptive_raw", "iq", 55.24, 53.15, note=_VITA),
    _claim("The moving average sounds better", "adaptive", ">", "adaptive_raw", "eq", 2.92, 2.53, note=_VITA),
    _claim("Adaptive λ answers better than fixed", "adaptive", ">", "fixed_text", "iq", 55.24, 52.60, note=_VITA),
    _claim("Adaptive λ sounds better than fixed", "adaptive", ">", "fixed_text", "eq", 2.92, 2.60, note=_VITA),
    _claim("DPO on all tokens makes the voice worse", "dpo_full", "<", None, "eq", 1.70, 2.56, note="Kimi-Audio"),
    _claim("DPO on all tokens harms the voice more than DPO on text", "dpo_full", "<", "dpo_text", "eq"),
    _claim(f"{_ALPO} (answers)", "alpo", ">", METHOD, "iq", note="arXiv 2608.03054"),
    _claim(f"{_ALPO} (voice)", "alpo", ">", METHOD, "eq", note="arXiv 2608.03054"),
    _claim(f"{_SPLIT} (voice: lower if it is noise)", "adaptive_both", "?", METHOD, "eq"),
    _claim(f"{_SPLIT} (answers: equal if it is dilution)", "adaptive_both", "?", METHOD, "iq"),
)


def verdict(direction: str, low: float, high: float, by_seed: Sequence[float]) -> str:
    """Return the verdict on a claimed direction, from the interval [low, high] of arm − other.

    by_seed: difference per seed. The interval covers prompts only. With one seed, or if seeds disagree in sign,
    training noise may be as large as the difference: the verdict is undecided.
    """
    if low <= 0 <= high or len(by_seed) < 2 or any(difference * (low + high) < 0 for difference in by_seed):
        return UNDECIDED
    found = "higher" if low > 0 else "lower"
    if direction == "open":
        return found
    return REPRODUCED if direction == found else NOT_REPRODUCED


def judge_claims(comparison: AblationResults, claims: Sequence[Claim] = CLAIMS) -> list[ClaimResult]:
    """Evaluate the claims whose arms share a seed, on the headline set."""
    present = {arm.name for arm in comparison.arms}
    judged = []
    for claim in claims:
        arms = [arm for arm in (claim.arm, claim.other) if arm is not None]
        if not present.issuperset(arms):
            continue
        seeds = comparison.seeds(*arms)
        if not seeds:
            continue
        own = comparison.after(HEADLINE, claim.measure, claim.arm, seeds)
        if claim.other is None:
            other = comparison.before(HEADLINE, claim.measure, claim.arm)
            difference = comparison.change(HEADLINE, claim.measure, claim.arm)
        else:
            other = comparison.after(HEADLINE, claim.measure, claim.other, seeds)
            difference = comparison.difference(HEADLINE, claim.measure, claim.arm, claim.other)
        if own and other and difference:
            judged.append(
                ClaimResult(
                    claim=claim,
                    ours=(own.value, other.value),
                    difference=difference,
                    verdict=verdict(claim.direction, difference.low, difference.high, difference.by_seed),
                    minutes=comparison.minutes(arms),
                )
            )
    return judged


@dataclass(frozen=True, kw_only=True, eq=False)
class ParetoFront:
    """Pareto front of a set of arms in IQ and EQ."""

    arms: tuple[str, ...]
    on: tuple[bool, ...]
    """True if the arm is on the front by the means."""
    share: tuple[float, ...]
    """Share of resamples with the arm on the front."""
    by_seed: tuple[tuple[bool, ...], ...]
    """True if the arm is on the front of one seed alone, by arm and seed."""
    seeds: tuple[int, ...]
    """Seeds common to all arms."""

    def verdict(self, arm: str) -> str:
        """Return the verdict on membership in the front.

        Reproduced: at least 97.5 % of resamples. Not reproduced: at most 2.5 %. Undecided otherwise, and unless two or
        more seeds agree.
        """
        place, tail = self.arms.index(arm), (1 - LEVEL) / 2
        own = self.by_seed[place]
        if len(own) >= 2 and self.share[place] >= 1 - tail and all(own):
            return REPRODUCED
        return NOT_REPRODUCED if len(own) >= 2 and self.share[place] <= tail and not any(own) else UNDECIDED


def pareto_front(comparison: AblationResults, arms: Sequence[str]) -> ParetoFront | None:
    """Return the Pareto front of (IQ, EQ) on the headline set. None without a common seed or without scores."""
    seeds = comparison.seeds(*arms) if arms else ()
    if not seeds:
        return None
    found = {arm: [comparison.after(HEADLINE, kind, arm, seeds) for kind in ("iq", "eq")] for arm in arms}
    points = {arm: (iq, eq) for arm, (iq, eq) in found.items() if iq is not None and eq is not None}
    if not points:
        return None
    means = np.array([[iq.value, eq.value] for iq, eq in points.values()])
    # [seeds, arms, 2]
    single = np.stack([np.array([iq.by_seed, eq.by_seed]).T for iq, eq in points.values()], axis=1)
    # [resamples, arms, 2]: all arms share the drawn prompts.
    samples = np.stack([np.stack([iq.samples, eq.samples], axis=-1) for iq, eq in points.values()], axis=1)
    return ParetoFront(
        arms=tuple(points),
        on=tuple(bool(on) for on in on_front(means)),
        by_seed=tuple(tuple(bool(on) for on in arm) for arm in on_front(single).T),
        share=tuple(float(share) for share in on_front(samples).mean(axis=0)),
        seeds=seeds,
    )


def paper_front(comparison: AblationResults) -> ParetoFront | None:
    """Return the front of the arms in the paper's table."""
    return pareto_front(comparison, [arm.name for arm in comparison.arms if arm.in_table])
