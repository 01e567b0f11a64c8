"""What is measured on held-out replies, prompt by prompt, and how a reply without a score counts.

A reply that could not be rated through its own fault (truncated, malformed, no speech) is wrong in a share and has the
lowest score in a mean: a broken voice must not look better for having dropped out. Where a rater failed nothing is
known of the reply, and its prompt is left out of that measure. Only evaluation counts like this; training never does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from configs.schema import Config
from observability.run_directory import read_evaluation


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of each reply, whose mean over prompts is shown."""

    caption: str
    meaning: str
    score: str
    """A rater's name, or a combined score's."""
    share: bool
    """100 for the highest score and 0 for any other, so that the mean is a percentage; else the score itself."""

    @property
    def digits(self) -> int:
        """After the decimal point, where it is shown."""
        return 1 if self.share else 2


MEASURES = {
    "iq": Metric(caption="IQ", meaning="share of replies whose answer is right, %", score="answer", share=True),
    "eq": Metric(caption="EQ", meaning="mean acoustic score", score="acoustic", share=False),
    "spoken_right": Metric(
        caption="right in what is heard, %",
        meaning="share of replies in which a listener hears the right answer, %",
        score="spoken_right",
        share=True,
    ),
    "heard": Metric(
        caption="heard as written, %",
        meaning="share of replies that are heard exactly as their text says, %",
        score="heard",
        share=True,
    ),
    "manner": Metric(caption="manner", meaning="mean score of the manner", score="manner", share=False),
}
"""By the name that columns of comparison.parquet begin with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationMetrics:
    """One evaluation of a run: a set of prompts, one reply each."""

    prompts: tuple[str, ...]
    """Their ids, sorted."""
    values: Mapping[str, np.ndarray]
    """By measure, float64 [prompts]; NaN where a rater failed, or everywhere when nobody rates it."""
    unratable: int
    """Replies without a score of some measure through their own fault."""
    unrated: int
    """Replies of which a rater failed to give a score."""

    def mean(self, kind: str) -> float | None:
        """A measure's mean over the prompts that have it; None when none has."""
        values = self.values[kind]
        return None if np.isnan(values).all() else float(np.nanmean(values))


def metric_named(directory: Path, when: str, name: str, config: Config) -> ValidationMetrics:
    """Measures an evaluation set of a run, "before" or "after". Raises InputError without its file.

    config: of the run; its scale of scores and its combined scores are used.
    """
    table = read_evaluation(directory, when, name)
    rows = table.select(["prompt_id", "scores", "missing", "failed_raters"]).to_pylist()
    rows.sort(key=lambda row: row["prompt_id"])
    prompts = tuple(row["prompt_id"] for row in rows)
    if not prompts or len(set(prompts)) < len(prompts):
        raise InputError(
            f"{directory}: the evaluation {when} on {name} must hold one reply a prompt; it holds {len(prompts)} "
            f"replies to {len(set(prompts))} prompts"
        )
    return read_validation_metrics(prompts, rows, config)


def read_validation_metrics(prompts: tuple[str, ...], rows: Sequence[Mapping], config: Config) -> ValidationMetrics:
    """The measures of one reply a prompt; of a row: scores and missing (by rater), failed_raters (names)."""
    lowest, highest = config.reward.score_min, config.reward.score_max
    scores = [dict(row["scores"]) for row in rows]
    missing = [dict(row["missing"]) for row in rows]
    failed = [set(row["failed_raters"] or ()) for row in rows]
    values = {}
    unratable, unrated = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for name, kind in MEASURES.items():
        combined = config.reward.composites.get(kind.score, {})
        # A combined score has no reason of its own for being missing: its raters have.
        parts = {kind.score, *(rater for rater, weight in combined.items() if weight)}
        column = np.full(len(rows), np.nan)
        values[name] = column
        if not any(parts & (present.keys() | absent.keys()) for present, absent in zip(scores, missing, strict=True)):
            continue
        for place, (present, faults) in enumerate(zip(scores, failed, strict=True)):
            score = present.get(kind.score)
            if score is None and parts & faults:
                unrated[place] = True
                continue
            unratable[place] |= score is None
            score = lowest if score is None else score
            column[place] = 100.0 * (score == highest) if kind.share else score
    return ValidationMetrics(prompts=prompts, values=values, unratable=int(unratable.sum()), unrated=int(unrated.sum()))
