"""`duet ablate`: train the missing runs of the paper's arms, then write the table, the plot and the page."""

import shlex
from dataclasses import dataclass, fields
from os.path import relpath
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer

from duet.options import Overrides
from evaluation.ablation.arms import ARMS, RunPlan, check_arm_settings, choose_arms, plan_runs
from evaluation.ablation.results import AblationResults, RunResult
from evaluation.ablation.runner import finished, has_summary, run_missing

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """Options that the page repeats in its command."""

    arms: str = ""
    seeds: int = 3
    iterations: int | None = None
    config: Path = Path(__file__).resolve().parent.parent / "configs" / "comparison.yaml"
    directory: Path = Path("runs/compare")
    page: Path | None = None

    def command(self, overrides: list[str]) -> str:
        """Return the shell command that writes the same page, without options at their defaults."""
        from evaluation.ablation.page import short

        words = ["duet", "ablate"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words += [f"--{field.name}", short(value) if isinstance(value, Path) else str(value)]
        return shlex.join([*words, *overrides])


DEFAULTS = AblationOptions()


@app.command()
def ablate(
    *,
    overrides: Overrides,
    arms: Annotated[
        str, typer.Option(metavar="A,B,…", help=f"arms to train: {', '.join(ARMS)}", show_default="all")
    ] = DEFAULTS.arms,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="number of seeds, from 0")] = DEFAULTS.seeds,
    iterations: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="length of each run", show_default="train.num_steps")
    ] = DEFAULTS.iterations,
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="YAML file that all arms share", show_default="configs/comparison.yaml")
    ] = DEFAULTS.config,
    directory: Annotated[Path, typer.Option(metavar="DIR", help="directory of the runs")] = DEFAULTS.directory,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file of the page", show_default="DIR/comparison.md")
    ] = DEFAULTS.page,
    write: Annotated[
        bool, typer.Option("--write", help="write the page from the finished runs, and train nothing")
    ] = False,
) -> None:
    """Train the paper's arms and compare them on one page.

    Finished runs are kept, so an interrupted command continues. Overrides apply to every run.

        duet ablate --arms fixed_full,fixed_text,adaptive rollout.batch_size=8
    """
    options = AblationOptions(
        arms=arms, seeds=seeds, iterations=iterations, config=config, directory=directory, page=page
    )
    plans = plan_runs(choose_arms(arms), seeds, directory, config, overrides, iterations)
    unknown: list[str] = []
    if write:
        unknown = _check(plans)
    else:
        run_missing(plans, directory)
    results = AblationResults([RunResult.read(plan) for plan in plans if finished(plan)])
    write_page(results, options, options.command(overrides), unknown)


def write_page(results: AblationResults, options: AblationOptions, command: str, unknown: list[str]) -> None:
    """Write comparison.parquet, comparison.png and the page. A page in another directory gets its own copy of the plot.

    Args:
        command: The command that the page shows.
        unknown: Configuration keys that only the runs or only the present version have.
    """
    from evaluation.ablation.page import page, records
    from evaluation.ablation.plot import plot  # imports matplotlib, which is slow

    directory = options.directory
    path = options.page or directory / "comparison.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [directory / "comparison.parquet", directory / "comparison.png"]
    pq.write_table(records(results), written[0])
    plot(results, written[1])
    picture = written[1]
    if path.parent.resolve() != directory.resolve():
        picture = path.with_suffix(".png")
        picture.write_bytes(written[1].read_bytes())
        written.append(picture)
    path.write_text(page(results, command, relpath(picture, path.parent), unknown), encoding="utf-8")
    for file in (path, *written):
        print(file)


def _check(plans: list[RunPlan]) -> list[str]:
    """Return the keys that cannot be compared. Raises InputError if a run has other settings than its plan."""
    keys = [key for plan in plans if has_summary(plan) for key in check_arm_settings(plan, known_to_both=True)]
    return list(dict.fromkeys(keys))
