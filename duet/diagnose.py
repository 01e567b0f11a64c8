"""`duet diagnose`: gradient geometry, Δlogp, score variance and agreement, and λ by its parts."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console

from common.errors import InputError
from controller.mix_ratio import MixRatioConfig
from duet.options import Run
from evaluation.diagnosis import plots
from evaluation.diagnosis.gradients import gradient_section, layer_rows
from evaluation.diagnosis.logprob_shift import shift_section
from evaluation.diagnosis.mix_ratio import measure_gates, mixture_section
from evaluation.diagnosis.models import ask_models, choose_checkpoints
from evaluation.diagnosis.page import Section, markdown, summary
from evaluation.diagnosis.rater_agreement import agreement_section, check_reference, variance_section
from evaluation.diagnosis.run_data import RunFiles
from observability.run_directory import read_iterations

app = typer.Typer()


@app.command()
def diagnose(
    run: Run,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="start|last|NUMBER",
            help="checkpoint to measure gradients at",
            show_default="the start model and the last checkpoint",
        ),
    ] = None,
    replies: Annotated[
        int, typer.Option(metavar="N", min=2, help="replies that a loss is averaged over; advantages need at least 2")
    ] = 256,
    reference: Annotated[
        str, typer.Option(metavar="RATER", help="rater whose ranking the other raters are compared with")
    ] = "total",
) -> Path:
    """Measure gradients, Δlogp, score variance and λ of a run.

    Writes RUN/diagnosis/ and prints the findings. A section whose data are missing says so; the others are complete.
    """
    files = RunFiles.open(run)
    choices = choose_checkpoints(files, checkpoint)
    if files.groups:
        check_reference(files.groups, reference)
    directory = files.directory / "diagnosis"
    directory.mkdir(exist_ok=True)

    findings = ask_models(files, choices, replies)
    sections = [
        gradient_section(findings.measured, findings.checks + findings.lacks),
        shift_section(choices[-1].name, findings.shifts, findings.lacks),
    ]
    if findings.measured:
        rows = [row for measured in findings.measured for row in layer_rows(measured)]
        plots.plot_gradients(rows, directory / "gradients.png")
    if any(len(shift.values) for shift in findings.shifts):
        plots.plot_shift(findings.shifts, directory / "shift.png")
    sections += _score_sections(files, reference, directory)
    command = ["duet", "diagnose", str(run), "--replies", str(replies), "--reference", reference]
    command += ["--checkpoint", checkpoint] if checkpoint is not None else []
    return _write(sections, run.resolve().name, command, directory)


def _score_sections(files: RunFiles, reference: str, directory: Path) -> list[Section]:
    if not files.groups:
        reason = f"Not measured: {files.directory / 'replies'} holds no replies."
        titles = ("Variance of scores within groups", f"Rank agreement with {reference}", "λ and what it is made of")
        return [Section(title=title, findings=[reason]) for title in titles]
    settings = MixRatioConfig.from_config(files.config)
    found = measure_gates(files.groups, settings)
    variance, mixture = variance_section(files.groups, settings), mixture_section(_iterations(files), found, settings)
    if variance.plots:
        plots.plot_variance(variance.table("variance_by_iteration").rows, directory / variance.plots[0])
    if mixture.plots:
        plots.plot_mixture(mixture.table("lambda").rows, found, directory / mixture.plots[0])
    return [variance, agreement_section(files.groups, reference, dict(files.config.reward.weights)), mixture]


def _iterations(files: RunFiles) -> pa.Table | None:
    try:
        return read_iterations(files.directory)
    except InputError:
        return None  # the section reports the missing table


def _write(sections: Sequence[Section], name: str, command: Sequence[str], directory: Path) -> Path:
    for table in {table.name: table for section in sections for table in section.tables}.values():
        if table.rows:
            pq.write_table(table.arrow(), directory / f"{table.name}.parquet", compression="zstd")
    page = directory / "diagnosis.md"
    title = f"Diagnosis of {name}"
    page.write_text(markdown(title, shlex.join(command), sections), encoding="utf-8")
    console = Console(highlight=False)
    console.print(f"duet diagnose  [bold]{name}[/]")
    console.print(summary(sections, page))
    return page
