"""`duet diagnose RUN`: gradient geometry, Δlogp, variance and agreement of the scores, and λ taken apart."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from common.errors import InputError
from controller.mix_ratio import MixRatioConfig
from evaluation.diagnosis import plots
from evaluation.diagnosis.gradients import gradient_section, layer_rows
from evaluation.diagnosis.logprob_shift import shift_section
from evaluation.diagnosis.mix_ratio import measure_gates, mixture_section
from evaluation.diagnosis.models import ask_models, choose_checkpoints
from evaluation.diagnosis.page import Section, markdown, summary
from evaluation.diagnosis.rater_agreement import agreement_section, check_reference, variance_section
from evaluation.diagnosis.run_data import RunFiles
from observability.run_directory import read_iterations

REPLIES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, or its name under runs/")
    parser.add_argument(
        "--checkpoint",
        metavar="start|last|NUMBER",
        help="the model to measure gradients at (default: the start model and the last checkpoint)",
    )
    parser.add_argument(
        "--replies", type=int, default=REPLIES, metavar="N", help="replies a loss is taken over (default: %(default)s)"
    )
    parser.add_argument(
        "--reference", default="total", metavar="RATER", help="whose ranking is the yardstick (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> Path:
    """Writes RUN/diagnosis/ and prints what it says. Returns the page.

    What cannot be measured is said in its section; the rest is there all the same. Raises InputError for a directory
    that is no run, and for options that the run has nothing for.
    """
    if options.replies < 2:
        raise InputError(f"--replies: {options.replies} is too small; at least 2, as advantages compare replies")
    files = RunFiles.open(options.run)
    choices = choose_checkpoints(files, options.checkpoint)
    if files.groups:
        check_reference(files.groups, options.reference)
    directory = files.directory / "diagnosis"
    directory.mkdir(exist_ok=True)

    findings = ask_models(files, choices, options.replies)
    sections = [
        gradient_section(findings.measured, findings.checks + findings.lacks),
        shift_section(choices[-1].name, findings.shifts, findings.lacks),
    ]
    if findings.measured:
        every = [row for measured in findings.measured for row in layer_rows(measured)]
        plots.plot_gradients(every, directory / "gradients.png")
    if any(len(one.values) for one in findings.shifts):
        plots.plot_shift(findings.shifts, directory / "shift.png")
    sections += _of_scores(files, options.reference, directory)
    return _write(sections, options, directory)


def _of_scores(files: RunFiles, reference: str, directory: Path) -> list[Section]:
    if not files.groups:
        lack = f"Not measured: {files.directory / 'replies'} holds no replies."
        titles = ("Variance of scores within groups", f"Rank agreement with {reference}", "λ and what it is made of")
        return [Section(title=title, findings=[lack]) for title in titles]
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
        return None  # the section says that there was nothing to compare with


def _write(sections: Sequence[Section], options: argparse.Namespace, directory: Path) -> Path:
    command = ["duet", "diagnose", str(options.run), "--replies", str(options.replies)]
    command += ["--reference", options.reference]
    command += ["--checkpoint", options.checkpoint] if options.checkpoint is not None else []
    for table in {table.name: table for section in sections for table in section.tables}.values():
        if table.rows:
            pq.write_table(table.arrow(), directory / f"{table.name}.parquet", compression="zstd")
    page = directory / "diagnosis.md"
    title = f"Diagnosis of {options.run.resolve().name}"
    page.write_text(markdown(title, shlex.join(command), sections), encoding="utf-8")
    console = Console(highlight=False)
    console.print(f"duet diagnose  [bold]{options.run.resolve().name}[/]")
    console.print(summary(sections, page))
    return page
