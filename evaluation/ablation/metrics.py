"""Validation metrics per prompt, including replies without a score.

A reply that is itself at fault (truncated, malformed, no speech) counts as wrong in a share and as the lowest score in
a mean. Dropping it would make a broken voice look better. If a rater failed, the prompt is excluded from that metric.
Only evaluation uses these rules; training never does.
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
    """Per-reply number, reported as a mean over prompts."""

    caption: str
    meaning: str
    score: str
    """Name of a rater or a composite score."""
    share: bool
    """True: 100 for the highest score and 0 for others, so the mean is a percentage. False: the score itself."""

    @property
    def digits(self) -> int:
        """Return the number of displayed decimals."""
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
"""Metrics by column prefix in comparison.parquet."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationMetrics:
    """One evaluation of a run: one reply per prompt."""

    prompts: tuple[str, ...]
    """Prompt ids, sorted."""
    values: Mapping[str, np.ndarray]
    """float64 [prompts] by metric. NaN where a rater failed; all NaN if no rater gives the score."""
    unratable: int
    """Number of replies at fault, without a score in some metric."""
    unrated: int
    """Number of replies with a failed rater."""

    def mean(self, kind: str) -> float | None:
        """Return the mean of a metric over prompts with a value. None without values."""
        values = self.values[kind]
        return None if np.isnan(values).all() else float(np.nanmean(values))


def metric_named(directory: Path, when: str, name: str, config: Config) -> ValidationMetrics:
    """Read the metrics of one evaluation set of a run. Raises InputError if its file is missing.

    when: "before" or "after" training. config: the run's configuration, for the score scale and composite scores.
    """
    table = read_evaluation(directory, when, name)
    rows = table.select(["prompt_id", "scores", "missing", "failed_raters"]).to_pylist()
    rows.sort(key=lambda row: row["prompt_id"])
    prompts = tuple(row["prompt_id"] for row in rows)
    if not prompts or len(set(prompts)) < len(prompts):
        raise InputError(
            f"{directory}: the evaluation {when} on {name} must contain one reply per prompt; found {len(prompts)} "
            f"replies to {len(set(prompts))} prompts"
        )
    return read_validation_metrics(prompts, rows, config)


def read_validation_metrics(prompts: tuple[str, ...], rows: Sequence[Mapping], config: Config) -> ValidationMetrics:
    """Return the metrics of one row per prompt, with scores and missing (by rater) and failed_raters (names)."""
    lowest, highest = config.reward.score_min, config.reward.score_max
    scores = [dict(row["scores"]) for row in rows]
    missing = [dict(row["missing"]) for row in rows]
    failed = [set(row["failed_raters"] or ()) for row in rows]
    values = {}
    unratable, unrated = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for name, kind in MEASURES.items():
        combined = config.reward.composites.get(kind.score, {})
        # The reason for a missing composite score is stored with its raters.
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
