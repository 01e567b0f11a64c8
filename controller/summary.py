"""What came of a run: summary.json and the plots, from its records."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from controller.config import Config
from controller.evaluation import paired_errors, summarise
from controller.held_out import HEADLINE
from controller.iteration import PHASES
from controller.records import read_events, read_iterations
from controller.statistics import Judged

Judgements = Mapping[str, list[Judged]]
"""Held-out replies by evaluation set."""
FAULTS = ("lost", "learner lost", "checkpoint failed", "step skipped", "work failed", "controller lost")
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
    table, highest = read_iterations(directory), config.mix.highest_score

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
    from controller.plots import plot_lambda, plot_scores  # matplotlib is slow to import

    table, headline = read_iterations(directory), summary.get(HEADLINE, {})
    plot_lambda(table, directory / "lambda.png")
    plot_scores(
        table,
        directory / "scores.png",
        {when: headline[when] for when in ("before", "after") if when in headline},
        [r.name for r in config.reward.raters if f"score_{r.name}" in table.column_names],
        (config.mix.lowest_score, config.mix.highest_score),
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
