"""The playground's arms, and `docs/results.md` made from them.

    .venv/bin/python bench/results.py            runs what is missing (9 runs, about 4 minutes each on 2 cores), then writes the page
    .venv/bin/python bench/results.py --write    writes the page from the runs that are there

Every arm starts from the same base and takes the same prompts, demonstrations and number of steps; the settings were fixed before any
arm but the method's first seed had been run. Runs lie in runs/results/ARM-SEED and are not repeated.
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
    for name, title in (
        ("held_out", "Known questions, new renderings"),
        ("held_out_facts", "Questions never trained on"),
    ):
        prompts = next(iter(runs.values()))[name]["after"]["prompts"]
        lines += ["", f"## {title} (`{name}`, {prompts} prompts)", ""]
        lines += [
            "Mean over seeds of the value after training, and of the change with its standard error over seeds.",
            "",
        ]
        lines += ["| arm | seeds | " + " | ".join(caption for caption, _, _ in MEASURES.values()) + " |"]
        lines += ["|---|---|" + "---|" * len(MEASURES)]
        lines += [_row("base", "", [r[name]["before"] for (a, _), r in runs.items() if a == "method"], None)]
        for arm, (caption, _) in ARMS.items():
            own = [run[name] for (a, _), run in runs.items() if a == arm]
            if own:
                lines += [
                    _row(f"**{arm}**: {caption}", len(own), [r["after"] for r in own], [r["before"] for r in own])
                ]
    lines += [
        "",
        "## Each run",
        "",
        "| run | command | " + " | ".join(c for c, _, _ in MEASURES.values()) + " | minutes |",
    ]
    lines += ["|---|---|" + "---|" * (len(MEASURES) + 1)]
    for (arm, seed), run in runs.items():
        text = " ".join(f"'{part}'" if "{" in part else part for part in command(arm, seed)[3:])
        cells = [
            _change(
                run["held_out"]["before"][m],
                run["held_out"]["after"][m],
                run["held_out"]["standard_error_of_change"][m],
                scale,
            )
            for m, (_, scale, _) in MEASURES.items()
        ]
        lines += [
            f"| {arm}-{seed} | `duet train {text}` | " + " | ".join(cells) + f" | {run['seconds']['total'] / 60:.1f} |"
        ]
    lines += ["", "Changes on `held_out`, ± the standard error over prompts, paired (`summary.json`).", ""]
    lines += ["## Sampler against learner", ""]
    gaps = [run["logp_gap_largest"] for run in runs.values()]
    lines += [
        f"Largest difference of a log-probability between vLLM and the learner over {len(runs)} runs and all their tokens: "
        f"{max(gaps):.1e}, in float32 (column `logp_gap_text`, `logp_gap_speech` of `iterations.parquet`; `summary.json`: "
        "`logp_gap_largest`).",
        "",
        "## λ",
        "",
        "| run | first | largest | last |",
        "|---|---|---|---|",
    ]
    for seed in SEEDS:
        if ("method", seed) in runs:
            series = pq.read_table(RUNS / f"method-{seed}" / "iterations.parquet")["lambda"].to_pylist()
            lines += [f"| method-{seed} | {series[0]:.3f} | {max(series):.3f} | {series[-1]:.3f} |"]
    return "\n".join(lines) + "\n"


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
