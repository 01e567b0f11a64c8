"""`duet compare`: runs what is missing, then writes the table, the plot and the page."""

import shlex
from argparse import ArgumentParser, Namespace
from os.path import relpath
from pathlib import Path

import pyarrow.parquet as pq

from evaluation.ablation.arms import ARMS, RunPlan, check_arm_settings, choose_arms, plan_runs
from evaluation.ablation.results import AblationResults, RunResult
from evaluation.ablation.runner import finished, has_summary, run_missing

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {
    "arms": "",
    "seeds": 3,
    "iterations": None,
    "config": ROOT / "configs" / "comparison.yaml",
    "directory": Path("runs/compare"),
    "page": None,
}
"""Of the options, by name."""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--arms", default=DEFAULTS["arms"], metavar="A,B,…", help=f"of {', '.join(ARMS)} (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=DEFAULTS["seeds"], help="how many, from 0 (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="of every run (default: what the configuration says)")
    parser.add_argument("--config", type=Path, default=DEFAULTS["config"], help="YAML file (default: %(default)s)")
    parser.add_argument(
        "--directory", type=Path, default=DEFAULTS["directory"], help="of the runs (default: %(default)s)"
    )
    parser.add_argument("--page", type=Path, help="where the page goes (default: comparison.md beside the runs)")
    parser.add_argument("--write", action="store_true", help="only write the page, from the runs that are there")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for every run, for example rollout.batch_size=8"
    )


def run(options: Namespace) -> None:
    """The whole command.

    Raises InputError for what cannot be run or compared, `controller.launcher.RunFailed` when a run fails.
    """
    arms = choose_arms(options.arms)
    plans = plan_runs(arms, options.seeds, options.directory, options.config, options.overrides, options.iterations)
    left_out: list[str] = []
    if options.write:
        left_out = _check(plans)
    else:
        run_missing(plans, options.directory)
    write(AblationResults([RunResult.read(one) for one in plans if finished(one)]), options, left_out)


def write(comparison: AblationResults, options: Namespace, left_out: list[str]) -> None:
    """Writes comparison.parquet, comparison.png and the page; with the plot beside a page that lies elsewhere."""
    from evaluation.ablation.page import page, records
    from evaluation.ablation.plot import plot  # matplotlib is slow to import

    directory: Path = options.directory
    where: Path = options.page or directory / "comparison.md"
    where.parent.mkdir(parents=True, exist_ok=True)
    written = [directory / "comparison.parquet", directory / "comparison.png"]
    pq.write_table(records(comparison), written[0])
    plot(comparison, written[1])
    picture = written[1]
    if where.parent.resolve() != directory.resolve():
        picture = where.with_suffix(".png")
        picture.write_bytes(written[1].read_bytes())
        written.append(picture)
    where.write_text(page(comparison, _command(options), relpath(picture, where.parent), left_out), encoding="utf-8")
    for path in (where, *written):
        print(path)


def _check(plans: list[RunPlan]) -> list[str]:
    """Keys that could not be compared. Raises InputError for a run with other settings."""
    keys = [key for one in plans if has_summary(one) for key in check_arm_settings(one, known_to_both=True)]
    return list(dict.fromkeys(keys))


def _command(options: Namespace) -> str:
    """The command as one would type it, without what is the default."""
    from evaluation.ablation.page import short

    words = ["duet", "compare"]
    for name, default in DEFAULTS.items():
        value = getattr(options, name)
        if value != default:
            words += [f"--{name}", short(value) if isinstance(value, Path) else str(value)]
    return shlex.join([*words, *options.overrides])
