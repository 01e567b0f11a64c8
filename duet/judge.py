"""`duet judge calibrate FILE`: judges against human ratings of the same replies.

    duet judge calibrate ratings.csv
    duet judge calibrate ratings.parquet --human mean_opinion --judges gemini,local --out calibration.json

FILE is .parquet, .jsonl, .csv or .tsv with a row a reply: prompt_id, reply_id, the human score, and a column for each
judge. Scores that are missing stay missing, and are counted.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.errors import InputError
from configs.schema import MixRatioSection, RewardSection
from controller.mix_ratio import MixRatioConfig
from evaluation.diagnosis.page import Cell, write_diagnosis
from evaluation.judge_agreement import (
    NEAR,
    JudgeAgreement,
    Ratings,
    ScoreSpread,
    compare_judges,
    human_agreement,
    read_ratings,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `duet judge`."""
    actions = parser.add_subparsers(dest="action", required=True)
    calibrate = actions.add_parser("calibrate", help="judges against human ratings of the same replies")
    calibrate.add_argument("file", type=Path, metavar="FILE", help=".parquet, .jsonl, .csv or .tsv, a row a reply")
    calibrate.add_argument("--human", default="human", metavar="COLUMN", help="of people's scores (default: human)")
    calibrate.add_argument(
        "--judges", metavar="COLUMN,COLUMN", help="of judges' scores (default: all other columns that hold numbers)"
    )
    calibrate.add_argument("--out", type=Path, metavar="FILE.json", help="write the numbers there as well")
    mix_ratio, reward = MixRatioSection(), RewardSection.model_fields
    for name, value, what in (
        ("lowest", reward["score_min"].default, "lowest score of the scale"),
        ("highest", reward["score_max"].default, "highest score of the scale"),
        ("largest", mix_ratio.max, "λ_max"),
        ("slope", mix_ratio.gate_slope, "k of λ's quality gate"),
    ):
        calibrate.add_argument(f"--{name}", type=float, default=value, help=f"{what} (default: %(default)s)")
    calibrate.add_argument("--threshold", type=float, help="of the quality gate (default: the middle of the scale)")


def run(options: argparse.Namespace) -> None:
    """Prints the comparison and writes it. Raises InputError for a file that will not do."""
    settings = _settings(options)
    names = None if options.judges is None else [name.strip() for name in options.judges.split(",")]
    ratings = read_ratings(options.file, options.human, names, settings.score_min, settings.score_max)
    found = [compare_judges(ratings, judge, settings) for judge in ratings.judges]
    people = human_agreement(ratings, settings)
    show(Console(highlight=False), ratings, people, found)
    if options.out is not None:
        _write(options.out, options.file, ratings, people, found, settings)


def _settings(options: argparse.Namespace) -> MixRatioConfig:
    low, high = options.lowest, options.highest
    if not -1e6 < low < high < 1e6:
        raise InputError(f"--lowest: {low:g} must be below --highest, {high:g}")
    if not 0 <= options.largest <= 1:
        raise InputError(f"--largest: {options.largest:g} is outside [0, 1]")
    if not 0 < options.slope < 1e6:
        raise InputError(f"--slope: {options.slope:g} must be above 0")
    threshold = (low + high) / 2 if options.threshold is None else options.threshold
    if not low <= threshold <= high:
        raise InputError(f"--threshold: {threshold:g} is outside the scale, {low:g} to {high:g}")
    return MixRatioConfig(
        max=options.largest, gate_slope=options.slope, gate_threshold=threshold, score_min=low, score_max=high
    )


def show(console: Console, ratings: Ratings, people: ScoreSpread, found: Sequence[JudgeAgreement]) -> None:
    """Two tables, how far each judge agrees and what its scale is like, and what they say."""
    prompts = int(ratings.prompts[-1]) + 1
    rated = int((ratings.human == ratings.human).sum())
    console.print(
        f"{len(ratings.human)} replies to {prompts} prompts; people rated {rated}, {len(ratings.human) - rated} are "
        f"without a human score. Within a prompt these vary by {write_diagnosis(people.variance)}; λ from them: "
        f"{write_diagnosis(people.raw)}."
    )
    if ratings.passed_over:
        console.print(f"columns without numbers, passed over: {', '.join(ratings.passed_over)}", style="dim")
    _table(
        console,
        "Agreement with people",
        {
            "judge": lambda c: c.judge,
            "both": lambda c: c.both,
            "missing": lambda c: c.missing,
            "Pearson": lambda c: c.pearson,
            "Spearman": lambda c: c.spearman,
            "within ρ": lambda c: c.within_spearman,
            "±": lambda c: c.within_spearman_margin,
            "within τ": lambda c: c.within_kendall,
            "prompts": lambda c: c.within_prompts,
        },
        found,
    )
    _table(
        console,
        "Scale, over the replies that both rated",
        {
            "judge": lambda c: c.judge,
            "bias": lambda c: c.bias,
            f"within {NEAR:g}": lambda c: c.near,
            "variance": lambda c: c.own.variance,
            "people's": lambda c: c.human.variance,
            "λ": lambda c: c.own.raw,
            "people's λ": lambda c: c.human.raw,
            "all alike": lambda c: c.own.alike,
        },
        found,
    )
    for one in found:
        if one.unused:
            why = ", ".join(f"{count} {reason}" for reason, count in one.unused.items())
            console.print(f"{one.judge}: prompts without a ranking to compare: {why}", style="dim")
    ranked = sorted((one.within_spearman, one.judge) for one in found if one.within_spearman is not None)
    if ranked:
        console.print(f"Nearest to people within a prompt: {ranked[-1][1]} (ρ {ranked[-1][0]:.2f}).")


def _table(
    console: Console, title: str, columns: dict[str, Callable[[JudgeAgreement], Cell]], found: Sequence[JudgeAgreement]
) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, heading in enumerate(columns):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for one in found:
        table.add_row(*(write_diagnosis(value(one)) for value in columns.values()))
    console.print(table)


def _write(
    path: Path,
    file: Path,
    ratings: Ratings,
    people: ScoreSpread,
    found: Sequence[JudgeAgreement],
    settings: MixRatioConfig,
) -> None:
    content = {
        "file": str(file),
        "scale": [settings.score_min, settings.score_max],
        "mix": {"largest": settings.max, "slope": settings.gate_slope, "threshold": settings.gate_threshold},
        "replies": len(ratings.human),
        "prompts": int(ratings.prompts[-1]) + 1,
        "without_human_score": int((ratings.human != ratings.human).sum()),
        "people": asdict(people),
        "judges": [asdict(one) for one in found],
    }
    try:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written: {error}") from error
