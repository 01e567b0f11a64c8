"""The playground's arms, and `docs/results.md` made from them.

    .venv/bin/python bench/results.py            runs what is missing, about 4 minutes each, and writes the page
    .venv/bin/python bench/results.py --write    writes the page from the runs that are there

Every arm starts from the same base and takes the same prompts, demonstrations and number of steps. Runs lie in
runs/results/ARM-SEED and are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "results"
Runs = dict[tuple[str, int], dict]
"""summary.json by arm and seed."""
SEEDS = (0, 1, 2)
ARMS = {
    "method": ("adaptive λ, preference on text, anchor on all", []),
    "full": ("the same with preference on all tokens", ["preference.routes=[{channel: all}]"]),
    "anchor": ("anchor only (λ = 0)", ["mix.mode=fixed", "mix.fixed=0"]),
    "bare_text": ("preference on text, no anchor (λ = 1)", ["mix.mode=fixed", "mix.fixed=1"]),
    "bare_full": (
        "preference on all tokens, no anchor (λ = 1)",
        ["mix.mode=fixed", "mix.fixed=1", "preference.routes=[{channel: all}]"],
    ),
}
MEASURES = {
    "answer_accuracy": ("right in the text", 100, " %"),
    "heard_accuracy": ("heard as written", 100, " %"),
    "spoken_right": ("right in what is heard", 100, " %"),
    "manner": ("manner, 1..5", 1, ""),
}


def command(arm: str, seed: int) -> list[str]:
    overrides = [f"run.seed={seed}", f"run.name={arm}-{seed}", "run.directory=runs/results", *ARMS[arm][1]]
    return ["-m", "controller", "train", *overrides]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="only write the page")
    if not parser.parse_args().write:
        for seed in SEEDS:
            for arm in ARMS:
                if not (RUNS / f"{arm}-{seed}" / "summary.json").exists():
                    subprocess.run([sys.executable, *command(arm, seed)], cwd=ROOT, check=True)
    (ROOT / "docs" / "results.md").write_text(page())


def page() -> str:
    runs = {
        (arm, seed): json.loads(path.read_text())
        for arm in ARMS
        for seed in SEEDS
        if (path := RUNS / f"{arm}-{seed}" / "summary.json").exists()
    }
    lines = (ROOT / "bench" / "results.head.md").read_text().splitlines()
    lines += _averages(runs, "held_out", "Known questions, new renderings")
    lines += _averages(runs, "held_out_facts", "Questions never trained on")
    return "\n".join([*lines, *_each(runs), *_agreement(runs), *_mix(runs)]) + "\n"


def _averages(runs: Runs, name: str, title: str) -> list[str]:
    """A table of the arms over their seeds, on one evaluation set."""
    prompts = next(iter(runs.values()))[name]["after"]["prompts"]
    lines = [
        *("", f"## {title} (`{name}`, {prompts} prompts)", ""),
        *("Mean over seeds of the value after training; in brackets the change, ± its standard error over seeds.", ""),
        "| arm | seeds | " + " | ".join(caption for caption, _, _ in MEASURES.values()) + " |",
        "|---|---|" + "---|" * len(MEASURES),
        _row("base", "", [run[name]["before"] for (arm, _), run in runs.items() if arm == "method"], None),
    ]
    for arm, (caption, _) in ARMS.items():
        own = [run[name] for (a, _), run in runs.items() if a == arm]
        if own:
            lines += [_row(f"**{arm}**: {caption}", len(own), [r["after"] for r in own], [r["before"] for r in own])]
    return lines


def _each(runs: Runs) -> list[str]:
    """A table with a line and the command for each run."""
    lines = [
        *("", "## Each run", ""),
        *("Changes on `held_out`, ± the standard error over prompts, paired (`summary.json` of the run).", ""),
        "| run | command | " + " | ".join(caption for caption, _, _ in MEASURES.values()) + " | minutes |",
        "|---|---|" + "---|" * (len(MEASURES) + 1),
    ]
    for (arm, seed), run in runs.items():
        text = " ".join(f"'{part}'" if "{" in part else part for part in command(arm, seed)[3:])
        measured = run["held_out"]
        cells = [
            _change(measured["before"][m], measured["after"][m], measured["standard_error_of_change"][m], scale)
            for m, (_, scale, _) in MEASURES.items()
        ]
        minutes = f"{run['seconds']['total'] / 60:.1f}"
        lines += ["| " + " | ".join([f"{arm}-{seed}", f"`duet train {text}`", *cells, minutes]) + " |"]
    return lines


def _agreement(runs: Runs) -> list[str]:
    gap = max(run["logp_gap_largest"] for run in runs.values())
    probe = max(run["probe_gap_largest"] for run in runs.values())
    return [
        *("", "## Sampler against learner", ""),
        f"Largest difference of a log-probability between vLLM and the learner over all iterations of all {len(runs)} "
        f"runs: {gap:.1e} on sampled tokens, {probe:.1e} on the probe after a sync, in float32 (`logp_gap_largest` and "
        "`probe_gap_largest` of each `summary.json`).",
    ]


def _mix(runs: Runs) -> list[str]:
    lines = ["", "## λ", "", "| run | first | largest | last |", "|---|---|---|---|"]
    for seed in SEEDS:
        if ("method", seed) in runs:
            series = pq.read_table(RUNS / f"method-{seed}" / "iterations.parquet")["lambda"].to_pylist()
            lines += [f"| method-{seed} | {series[0]:.3f} | {max(series):.3f} | {series[-1]:.3f} |"]
    return lines


def _row(caption: str, seeds: object, after: list[dict], before: list[dict] | None) -> str:
    cells = []
    for measure, (_, scale, unit) in MEASURES.items():
        values = [a[measure] * scale for a in after]
        digits = 1 if scale == 100 else 2
        cell = f"{np.mean(values):.{digits}f}{unit}"
        if before is not None:
            changes = [(a[measure] - b[measure]) * scale for a, b in zip(after, before, strict=True)]
            error = f" ± {np.std(changes, ddof=1) / np.sqrt(len(changes)):.{digits}f}" if len(changes) > 1 else ""
            cell += f" ({np.mean(changes):+.{digits}f}{error})"
        cells.append(cell)
    return f"| {caption} | {seeds} | " + " | ".join(cells) + " |"


def _change(before: float, after: float, error: float, scale: int) -> str:
    digits = 1 if scale == 100 else 2
    return f"{(after - before) * scale:+.{digits}f} ± {error * scale:.{digits}f}"


if __name__ == "__main__":
    main()
