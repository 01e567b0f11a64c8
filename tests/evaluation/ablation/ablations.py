"""Synthetic files of comparison runs, with chosen numbers."""

import copy
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from duet.__main__ import execute
from duet.ablate import DEFAULTS
from evaluation.ablation.arms import RunPlan, choose_arms, plan_runs

CONFIG = DEFAULTS.config
PROMPTS = 120
NUMBERS = pa.map_(pa.string(), pa.float32())
ROWS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("scores", NUMBERS),
        ("missing", pa.map_(pa.string(), pa.string())),
        ("failed_raters", pa.list_(pa.string())),
    ]
)
QUALITY = {
    "anchor_only": (0.40, 4.2),
    "fixed_full": (0.60, 3.6),
    "fixed_text": (0.70, 3.9),
    "fixed_text_03": (0.55, 4.1),
    "adaptive_full": (0.65, 3.7),
    "adaptive_raw": (0.80, 4.2),
    "adaptive": (0.80, 4.2),
    "two_stage": (0.75, 3.0),
    "dpo_full": (0.70, 2.0),
    "dpo_text": (0.75, 2.6),
    "alpo": (0.70, 4.0),
    "adaptive_both": (0.78, 3.8),
}
"""Share of correct answers and mean voice score of synthetic runs. Most follow the paper's order."""


def replies(share: float, voice: float, seed: int, name: str) -> list[dict]:
    """Return the replies of one evaluation. Arms share prompt difficulty, but not a small random part."""
    shared = np.random.default_rng(5)
    hard, mood = shared.random(PROMPTS), shared.normal(0, 0.6, PROMPTS)
    own = np.random.default_rng([seed, *name.encode()])
    right = hard + own.normal(0, 0.02, PROMPTS) < share
    manner = np.clip(voice + mood + own.normal(0, 0.05, PROMPTS), 1.0, 5.0)
    return [
        row(
            f"p{i}", answer=5.0 if right[i] else 1.0, heard=5.0, manner=manner[i], spoken_right=5.0 if right[i] else 1.0
        )
        for i in range(PROMPTS)
    ]


def row(prompt: str, *, missing: dict[str, str] | None = None, failed: tuple[str, ...] = (), **scores: float) -> dict:
    if "heard" in scores and "manner" in scores:
        scores["acoustic"] = (scores["heard"] + scores["manner"]) / 2
    return {"prompt_id": prompt, "scores": scores, "missing": missing or {}, "failed_raters": list(failed)}


def write_run(one: RunPlan, iterations: int | None = None, after: list[dict] | None = None, **summary: object) -> None:
    """Write the files of a finished `duet train` run that a comparison reads."""
    config = copy.deepcopy(one.config)
    config.run.directory = str(one.directory.parent.absolute())
    config.data.prompts = str(Path(config.data.prompts).absolute())
    config.data.validation = {name: str(Path(path).absolute()) for name, path in config.data.validation.items()}
    one.directory.mkdir(parents=True)
    (one.directory / "config.yaml").write_text(config.yaml())
    done = iterations or config.train.num_steps
    mix = [0.1 + 0.01 * number for number in range(done)]
    mix[-1] = 0.05
    table = {"lambda": mix, "replies": [64] * done, "replies_truncated": [1] * done, "mix_overridden": [0] * done}
    pq.write_table(pa.table(table), one.directory / "iterations.parquet")
    for name in config.data.validation:
        sets = {
            "before": replies(0.4, 4.2, 0, name),
            "after": after or replies(*QUALITY[one.arm.name], one.seed, one.arm.name + name),
        }
        for when, rows in sets.items():
            path = one.directory / "evaluations" / when / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            maps = [{**r, "scores": list(r["scores"].items()), "missing": list(r["missing"].items())} for r in rows]
            np.random.default_rng([*one.name.encode(), *when.encode()]).shuffle(maps)  # order must not matter
            pq.write_table(pa.Table.from_pylist(maps, schema=ROWS), path)
    content = {
        "iterations": done,
        "seconds": {"total": 120.0},
        "logp_gap_largest": 1e-5 * (one.seed + 1),
        "probe_gap_largest": 2e-6,
        "raters": {"answer": "a-1"},
        "versions": {"torch": "9.9"},
    }
    (one.directory / "summary.json").write_text(json.dumps(content | summary))


def plans(directory: Path, arms: str = "fixed_text,adaptive", seeds: int = 1, *overrides: str) -> list[RunPlan]:
    return plan_runs(choose_arms(arms), seeds, directory, CONFIG, overrides, 6)


def ablate(directory: Path, *arguments: str) -> None:
    """Run `duet ablate` in this process, with six iterations per run."""
    execute(["ablate", "--directory", str(directory), "--iterations", "6", *arguments])
