"""Held-out evaluation as pure functions of judged replies: the same prompts before and after, one reply each."""

from collections.abc import Sequence

import numpy as np

from controller.statistics import Judged
from reward.rater import Missing

SHARES = {"answer_accuracy": "answer", "heard_accuracy": "heard", "spoken_right": "spoken_right"}
"""Measures that are the share of replies with a rater's highest score, by the rater's name."""


def _values(judged: Sequence[Judged], highest: float) -> dict[str, list[float | None]]:
    """Every measure's value for every prompt, in order: scores, and 1 or 0 for shares.

    A reply that could not be rated (truncated, malformed, no sound) has no mean to join, but it is not right either: it
    counts as 0 in a share. Where the rater failed nothing is known, and the prompt is left out.
    """
    names = list(dict.fromkeys(name for j in judged for name in j.scores))
    values: dict[str, list[float | None]] = {
        name: [j.number(name) for j in judged] for name in names if name not in SHARES
    }
    for measure, rater in SHARES.items():
        if rater in names:
            values[measure] = [None if _failed(j, rater) else float(j.number(rater) == highest) for j in judged]
    return values


def _failed(judged: Judged, rater: str) -> bool:
    score = judged.scores[rater]
    return isinstance(score, Missing) and score.fault == "rater"


def summarise(judged: Sequence[Judged], highest: float) -> dict[str, float | int | None]:
    """Means by measure over the prompts, with `prompts` and `missing` (replies with a missing score)."""
    summary: dict[str, float | int | None] = {}
    for measure, values in _values(judged, highest).items():
        present = [v for v in values if v is not None]
        summary[measure] = float(np.mean(present)) if present else None
    summary["prompts"] = len(judged)
    summary["missing"] = sum(any(j.number(name) is None for name in j.scores) for j in judged)
    return summary


def paired_errors(before: Sequence[Judged], after: Sequence[Judged], highest: float) -> dict[str, float]:
    """Standard error of after − before by measure, paired over the prompts that have both."""
    errors = {}
    first, second = _values(before, highest), _values(after, highest)
    for measure in first:
        pairs = zip(first[measure], second.get(measure, []), strict=False)
        differences = [b - a for a, b in pairs if a is not None and b is not None]
        if len(differences) >= 2:
            errors[measure] = float(np.std(differences, ddof=1) / np.sqrt(len(differences)))
    return errors
