"""Held-out evaluation as pure functions of judged replies: the same prompts before and after, one reply each.

What came of a run: summary.json and the plots, from its records.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from configs.schema import HEADLINE, Config
from observability.iteration import PHASES
from observability.run_directory import read_events, read_iterations
from reward.scoring import ScoredReply
from reward.types import MissingScore

SHARES = {"answer_accuracy": "answer", "heard_accuracy": "heard", "spoken_right": "spoken_right"}
"""Measures that are the share of replies with a rater's highest score, by the rater's name."""


def _values(judged: Sequence[ScoredReply], highest: float) -> dict[str, list[float | None]]:
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


def _failed(judged: ScoredReply, rater: str) -> bool:
    score = judged.scores[rater]
    return isinstance(score, MissingScore) and score.fault == "rater"


def summarise(judged: Sequence[ScoredReply], highest: float) -> dict[str, float | int | None]:
    """Means by measure over the prompts, with `prompts` and `missing` (replies with a missing score)."""
    summary: dict[str, float | int | None] = {}
    for measure, values in _values(judged, highest).items():
        present = [v for v in values if v is not None]
        summary[measure] = float(np.mean(present)) if present else None
    summary["prompts"] = len(judged)
    summary["missing"] = sum(any(j.number(name) is None for name in j.scores) for j in judged)
    return summary


def paired_errors(before: Sequence[ScoredReply], after: Sequence[ScoredReply], highest: float) -> dict[str, float]:
    """Standard error of after − before by measure, paired over the prompts that have both."""
    errors = {}
    first, second = _values(before, highest), _values(after, highest)
    for measure in first:
        pairs = zip(first[measure], second.get(measure, []), strict=False)
        differences = [b - a for a, b in pairs if a is not None and b is not None]
        if len(differences) >= 2:
            errors[measure] = float(np.std(differences, ddof=1) / np.sqrt(len(differences)))
    return errors


Judgements = Mapping[str, list[ScoredReply]]
"""Held-out replies by evaluation set."""


FAULTS = ("actor_died", "learner_died", "checkpoint_failed", "step_skipped", "task_failed", "controller_died")
"""Kinds of events that are counted as faults."""


def summarise_run(
    directory: Path,
    config: Config,
    before: Judgements,
    after: Judgements,
    *,
    signal: Mapping[str, float | None],
    raters: Mapping[str, str],
    weight_version: int,
    members: Mapping[str, int],
    seconds: float,
) -> dict:
    """The content of summary.json.

    before, after: held-out replies. signal: signal quality by "before" and "after". raters: their versions. members: by
    role, at the end. seconds: wall time of the whole run, earlier parts of a resumed one included.
    """
    table, highest = read_iterations(directory), config.reward.score_max

    def column(name: str) -> np.ndarray:
        return np.asarray(table[name].to_pylist(), dtype=float)

    held_out = {
        name: {
            "before": summarise(before[name], highest),
            "after": summarise(after[name], highest),
            "standard_error_of_change": paired_errors(before[name], after[name], highest),
        }
        for name in before
    }
    kinds = [event["kind"] for event in read_events(directory)]
    return {
        "run": directory.name,
        "seed": config.run.seed,
        "iterations": table.num_rows,
        "weight_version": weight_version,
        "lambda_first": float(column("lambda")[0]),
        "lambda_last": float(column("lambda")[-1]),
        **held_out,
        "signal_quality": dict(signal),
        "logp_gap_largest": _largest(np.concatenate([column("logp_gap_text"), column("logp_gap_speech")])),
        "probe_gap_largest": float(column("probe_gap").max()),
        "replies": int(column("replies").sum()),
        "replies_dropped": int(column("replies_dropped").sum()),
        "faults": {kind: kinds.count(kind) for kind in FAULTS if kind in kinds},
        "seconds": {"total": seconds} | {phase: float(column(f"seconds_{phase}").sum()) for phase in PHASES},
        "tokens": {name: int(column(f"tokens_{name}").sum()) for name in ("text", "speech")},
        "workers": dict(members),
        "versions": {name: package_version(name) for name in ("vllm", "ray", "deepspeed", "torch", "transformers")},
        "raters": dict(raters),
    }


def plot_run(directory: Path, config: Config, summary: Mapping) -> None:
    """lambda.png and scores.png."""
    from observability.plots import plot_lambda, plot_scores  # matplotlib is slow to import

    table, headline = read_iterations(directory), summary.get(HEADLINE, {})
    plot_lambda(table, directory / "lambda.png")
    plot_scores(
        table,
        directory / "scores.png",
        {when: headline[when] for when in ("before", "after") if when in headline},
        [r.name for r in config.reward.functions if f"score_{r.name}" in table.column_names],
        (config.reward.score_min, config.reward.score_max),
    )


def _largest(values: np.ndarray) -> float | None:
    """Of those that were measured; None where none was."""
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else None


def package_version(name: str) -> str:
    """Of an installed package. vLLM comes under another name on machines without a GPU."""
    for package in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"
