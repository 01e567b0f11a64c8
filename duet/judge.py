"""`duet judge calibrate`: judges compared with human ratings of the same replies."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
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

app = typer.Typer()
judge = typer.Typer(help="Compare judges with human ratings.")
app.add_typer(judge, name="judge")
MIX, REWARD = MixRatioSection(), RewardSection.model_fields
"""Defaults of the options."""


@judge.command()
def calibrate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".parquet, .jsonl, .csv or .tsv, one row per reply")],
    human: Annotated[str, typer.Option(metavar="COLUMN", help="column of the human scores")] = "human",
    judges: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,…", help="columns of the judges' scores", show_default="all other columns of numbers"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="file to write the numbers to")] = None,
    lowest: Annotated[float, typer.Option(min=-1e6, max=1e6, help="lowest score of the scale")] = REWARD[
        "score_min"
    ].default,
    highest: Annotated[float, typer.Option(min=-1e6, max=1e6, help="highest score of the scale")] = REWARD[
        "score_max"
    ].default,
    largest: Annotated[float, typer.Option(min=0.0, max=1.0, help="λ_max")] = MIX.max,
    slope: Annotated[float, typer.Option(min=0.0, max=1e6, help="slope k of λ's quality gate")] = MIX.gate_slope,
    threshold: Annotated[
        float | None, typer.Option(help="threshold of the quality gate", show_default="the middle of the scale")
    ] = None,
) -> None:
    """Compare judges with human ratings of the same replies.

    FILE has one row per reply with the columns prompt_id, reply_id, the human score, and one column per judge.
    Missing scores stay missing and are counted.

        duet judge calibrate ratings.csv
        duet judge calibrate ratings.parquet --human mean_opinion --judges gemini,local --out calibration.json
    """
    settings = mix_settings(lowest=lowest, highest=highest, largest=largest, slope=slope, threshold=threshold)
    names = None if judges is None else [name.strip() for name in judges.split(",")]
    ratings = read_ratings(file, human, names, lowest, highest)
    found = [compare_judges(ratings, name, settings) for name in ratings.judges]
    people = human_agreement(ratings, settings)
    show(Console(highlight=False), ratings, people, found)
    if out is not None:
        _write(out, file, ratings, people, found, settings)


def mix_settings(
    *,
    lowest: float = REWARD["score_min"].default,
    highest: float = REWARD["score_max"].default,
    largest: float = MIX.max,
    slope: float = MIX.gate_slope,
    threshold: float | None = None,
) -> MixRatioConfig:
    """Return the settings of λ for the scale of the ratings. Raises InputError if the values contradict each other."""
    if lowest >= highest:
        raise InputError(f"--lowest: {lowest:g} is not below --highest, {highest:g}; give a lower score")
    if slope <= 0:
        raise InputError(f"--slope: {slope:g} is too small; give a number above 0")
    threshold = (lowest + highest) / 2 if threshold is None else threshold
    if not lowest <= threshold <= highest:
        raise InputError(
            f"--threshold: {threshold:g} is outside the scale; give a number from {lowest:g} to {highest:g}"
        )
    return MixRatioConfig(
        schedule=MIX.schedule,
        value=MIX.value,
        warmup_steps=MIX.warmup_steps,
        max=largest,
        gate_slope=slope,
        gate_threshold=threshold,
        score_min=lowest,
        score_max=highest,
        ema_decay=MIX.ema_decay,
        initial=MIX.initial,
        per_group=MIX.per_group,
    )


def show(console: Console, ratings: Ratings, people: ScoreSpread, found: Sequence[JudgeAgreement]) -> None:
    """Print each judge's agreement with humans and the properties of its scale."""
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
