"""`duet evaluate`: a suite's spoken questions, asked and scored.

    duet evaluate --run runs/mine --suite voicebench --data DIR --judge semantic --hear heard
    duet evaluate --config my.yaml --out scores --suite vstyle --data DIR --judge acoustic
    duet evaluate --replies replies.jsonl --out scores --suite openaudiobench --data DIR

A run is asked with its newest checkpoint, a configuration with the one that it names. Replies that were sampled
elsewhere need no model: a JSON object a line, {"task", "id", "text", "audio"}. Raters go by their names in
reward.raters. Prints a table of the tasks and IQ or EQ, and writes SUITE.json and SUITE.parquet, a row an item, into
evaluation/ of the run or of --out.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from common.errors import InputError
from configs.load import load_config, make_absolute
from configs.schema import Config
from controller.checkpoint_checks import check_rater
from controller.checkpointing import CheckpointManager
from evaluation.benchmarks import openaudiobench, tables, voicebench, vstyle
from evaluation.benchmarks.generation import read_replies
from evaluation.benchmarks.grading import AnsweredItem, GradedItem, Graders, grade
from evaluation.benchmarks.items import TaskFilter
from observability.run_directory import run_directory
from reward.server import ClassSpec, score_replies

SUITES = {"voicebench": voicebench, "openaudiobench": openaudiobench, "vstyle": vstyle}
DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "playground.yaml"
HEARS = "heard"
"""The rater that hears, where none is named and there is one of this name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `duet evaluate`."""
    parser.add_argument("--suite", required=True, choices=sorted(SUITES), help="whose layout the data have")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the suite as it was downloaded")
    parser.add_argument("--run", type=Path, metavar="RUN", help="a run, by its directory or its name under runs/")
    parser.add_argument("--config", type=Path, help="YAML file (default without --run: the playground's)")
    parser.add_argument("--replies", type=Path, metavar="FILE", help="JSONL of replies that were sampled elsewhere")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where evaluation/ is written (default: the run)")
    parser.add_argument("--tasks", default="", metavar="TASK,…", help="these tasks alone (default: all)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="of each task the first N (default: all)")
    parser.add_argument("--judge", default="", metavar="RATER", help="scores open answers and styles")
    parser.add_argument(
        "--answer-judge", default="", metavar="RATER", help="says whether answers are right (default: a program does)"
    )
    parser.add_argument("--hear", default="", metavar="RATER", help=f"recognises speech (default: {HEARS!r} if there)")
    parser.add_argument("--temperature", type=float, metavar="T", help="of sampling (default: rollout.temperature)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `duet train`")


def run(options: argparse.Namespace) -> Path:
    """Returns the JSON file that it has written. Raises InputError before anything is started, RunFailed."""
    config, directory, source = _source(options)
    if options.limit < 0:
        raise InputError(f"--limit: {options.limit} is not possible; 0 for all, or how many of each task")
    if options.temperature is not None and not 0.0 <= options.temperature <= 10.0:
        raise InputError(f"--temperature: {options.temperature:g} is not possible; allowed: 0 to 10")
    hears = options.hear or next((r.name for r in (config.reward.raters if config else []) if r.name == HEARS), "")
    names = [name for name in (options.judge, options.answer_judge, hears) if name]
    _keep_raters(config, names)
    console = Console(highlight=False)
    console.print(f"duet evaluate  [bold]{options.suite}[/]  {source['of']}", soft_wrap=True)
    lowest, highest = (config.mix.lowest_score, config.mix.highest_score) if config else (1.0, 5.0)
    panel = {
        "judge": options.judge, "answers": options.answer_judge, "hears": hears, "lowest": lowest, "highest": highest,
    }  # fmt: skip
    chosen = TaskFilter(tasks=tuple(filter(None, options.tasks.split(","))), limit=options.limit)
    if options.replies is not None:
        found, made = _elsewhere(options, config, chosen, panel)
    else:
        assert config is not None
        found, made = _sampled(options, config, chosen, panel, console)
    summary = {"suite": options.suite, "data": str(options.data), **source, **made, **tables.summary(found, highest)}
    path = directory / f"{options.suite}.json"
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(tables.rows(found), path.with_suffix(".parquet"), compression="zstd")
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(tables.shown(summary, options.suite))
    console.print(f"  {path}\n  {path.with_suffix('.parquet')}", soft_wrap=True)
    return path


def _source(options: argparse.Namespace) -> tuple[Config | None, Path, dict[str, Any]]:
    """The configuration, where to write, and what is evaluated."""
    if options.run is not None and options.config is not None:
        raise InputError("--config: a run has a configuration of its own; give --run or --config")
    directory = run_directory(options.run) if options.run is not None else None
    out = options.out or directory
    if out is None:
        raise InputError("--out: without --run there is no directory to write to; name one")
    if options.replies is not None and options.config is None and directory is None:
        if options.overrides:
            raise InputError(f"{options.overrides[0]!r}: replies from elsewhere have no configuration; give --config")
        return None, out / "evaluation", {"of": str(options.replies)}
    path = directory / "config.yaml" if directory is not None else options.config or DEFAULT_CONFIG
    config = load_config(path, options.overrides)
    make_absolute(config)
    source: dict[str, Any] = {"of": str(options.replies or config.model.checkpoint)}
    if directory is not None and options.replies is None:
        newest = CheckpointManager(directory).newest()
        if newest is None:
            raise InputError(f"{directory} has no checkpoint (yet); --config evaluates the model it began with")
        config.model.checkpoint = str(newest.directory.absolute())
        source = {"of": f"{directory.name} after iteration {newest.iteration}", "iteration": newest.iteration}
    return config, out / "evaluation", source


def _keep_raters(config: Config | None, names: list[str]) -> None:
    """Those that are asked, and no others."""
    present = [rater.name for rater in config.reward.raters] if config else []
    for name in names:
        if name not in present:
            known = ", ".join(present) or "none; --config names a configuration that has some"
            raise InputError(f"no rater is called {name!r}; reward.raters: {known}")
    if config is not None:
        config.reward.raters = [rater for rater in config.reward.raters if rater.name in names]


def _elsewhere(
    options: argparse.Namespace, config: Config | None, chosen: TaskFilter, panel: dict[str, Any]
) -> tuple[list[GradedItem], dict[str, Any]]:
    """Scores replies that are there, in this process."""
    named = config.reward.raters if config else []
    for rater in named:
        check_rater(rater)
    raters = [ClassSpec(use=rater.use, arguments=dict(rater.arguments), name=rater.name).build() for rater in named]
    seconds = config.reward.score_seconds if config else 0.0
    items = list(chosen.of(SUITES[options.suite].read(options.data, chosen, sounds=False)))
    tasks = {item.task for item in items} if not chosen.limit else set()
    judging = Graders(
        rate=lambda spoken, names: score_replies([r for r in raters if r.name in names], spoken, seconds), **panel
    )
    found = [one for some in read_replies(options.replies, items, tasks) for one in grade(some, judging)]
    return found, {"raters": {rater.name: rater.version for rater in raters}}


def _sampled(
    options: argparse.Namespace, config: Config, chosen: TaskFilter, panel: dict[str, Any], console: Console
) -> tuple[list[GradedItem], dict[str, Any]]:
    """Asks the model, in the pools of a run."""
    from cluster.waiting import ActorFailed, CallTimeout
    from controller.launcher import RunFailed, join_cluster, silence_ray
    from evaluation.benchmarks.generation import BenchmarkModel

    model = BenchmarkModel(config, options.temperature, lambda kind, **fields: _tell(console, kind, fields))
    suite = SUITES[options.suite]
    count = sum(1 for _ in chosen.of(suite.read(options.data, chosen, sounds=False)))  # what is wrong is said now
    items = chosen.of(suite.read(options.data, chosen, sounds=True))
    join_cluster(config)
    silence_ray()
    found: list[GradedItem] = []
    try:
        judging = Graders(rate=model.rate, **panel)
        for answered in _counted(model.ask(items), count, console):
            found += grade(answered, judging)
    except (ActorFailed, CallTimeout) as error:
        raise RunFailed(str(error)) from error
    finally:
        import ray

        model.close()
        ray.shutdown()
    return found, {"raters": model.versions, "sampling": asdict(model.sampling), "seed": config.run.seed}


def _counted(batches: Iterator[list[AnsweredItem]], count: int, console: Console) -> Iterator[list[AnsweredItem]]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        console.print(f"  [dim]{done:,} of {count:,} items scored[/]")


def _tell(console: Console, kind: str, fields: dict[str, object]) -> None:
    """What happens to members."""
    if kind in ("actor_died", "task_failed", "waiting_for_resources"):
        console.print(
            f"  {kind}: {fields.get('member', '')} {fields.get('reason', fields.get('error', ''))}", markup=False
        )
