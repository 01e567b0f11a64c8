"""`duet evaluate`: a benchmark of spoken questions, answered by a model and scored."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
import typer
from rich.console import Console

from common.errors import InputError
from configs.load import load_config, make_absolute
from configs.schema import Config
from controller.checkpoint_checks import check_rater
from controller.checkpointing import CheckpointManager
from duet.options import Configs, Overrides, merge_configs
from evaluation.benchmarks import openaudiobench, tables, voicebench, vstyle
from evaluation.benchmarks.generation import read_replies
from evaluation.benchmarks.grading import AnsweredItem, GradedItem, Graders, grade
from evaluation.benchmarks.items import TaskFilter
from observability.run_directory import run_directory
from reward.server import ClassSpec, score_replies

app = typer.Typer()

SUITES = {"voicebench": voicebench, "openaudiobench": openaudiobench, "vstyle": vstyle}
SuiteName = Literal["voicebench", "openaudiobench", "vstyle"]
DEFAULT_RECOGNISER = "heard"
"""The rater that recognises speech, if --hear names none and reward.functions has it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options that decide what is evaluated."""

    suite: str
    data: Path
    run: Path | None
    configs: list[Path]
    replies: Path | None
    out: Path | None
    temperature: float | None
    overrides: list[str]


@app.command()
def evaluate(
    *,
    overrides: Overrides,
    config: Configs,
    suite: Annotated[
        Literal["voicebench", "openaudiobench", "vstyle"], typer.Option(help="benchmark whose layout the data have")
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", help="benchmark as it was downloaded")],
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="run to evaluate: its directory, or its name under runs/")
    ] = None,
    replies: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON lines of replies that were generated elsewhere")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="directory to write evaluation/ to", show_default="the run")
    ] = None,
    tasks: Annotated[str, typer.Option(metavar="TASK,…", help="tasks to evaluate", show_default="all")] = "",
    limit: Annotated[
        int, typer.Option(metavar="N", min=0, help="evaluate the first N items of each task; 0 evaluates all")
    ] = 0,
    judge: Annotated[str, typer.Option(metavar="RATER", help="rater that scores open answers and styles")] = "",
    answer_judge: Annotated[
        str, typer.Option(metavar="RATER", help="rater that decides if an answer is right", show_default="a program")
    ] = "",
    hear: Annotated[
        str, typer.Option(metavar="RATER", help="rater that recognises speech", show_default="heard, if configured")
    ] = "",
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=10.0, help="sampling temperature", show_default="rollout.temperature"),
    ] = None,
) -> Path:
    """Run a benchmark of spoken questions and score the replies.

    Evaluates the newest checkpoint of a run, or the checkpoint that a configuration names. Replies that were generated
    elsewhere need no model: one JSON object per line, {"task", "id", "text", "audio"}. Raters are named as in
    reward.functions.

    Prints a table of the tasks with IQ or EQ. Writes SUITE.json and SUITE.parquet, one row per item, into evaluation/
    of the run or of --out.

        duet evaluate --run runs/mine --suite voicebench --data DIR --judge semantic --hear heard
        duet evaluate --config my.yaml --out scores --suite vstyle --data DIR --judge acoustic
        duet evaluate --replies replies.jsonl --out scores --suite openaudiobench --data DIR
    """
    options = EvaluationOptions(
        suite=suite,
        data=data,
        run=run,
        configs=config,
        replies=replies,
        out=out,
        temperature=temperature,
        overrides=overrides,
    )
    settings, directory, source = _read_source(options)
    raters = settings.reward.functions if settings else []
    hear = hear or next((rater.name for rater in raters if rater.name == DEFAULT_RECOGNISER), "")
    _keep_raters(settings, [name for name in (judge, answer_judge, hear) if name])
    console = Console(highlight=False)
    console.print(f"duet evaluate  [bold]{options.suite}[/]  {source['of']}", soft_wrap=True)
    lowest, highest = (settings.reward.score_min, settings.reward.score_max) if settings else (1.0, 5.0)
    roles = {"judge": judge, "answers": answer_judge, "hears": hear, "lowest": lowest, "highest": highest}
    chosen = TaskFilter(tasks=tuple(filter(None, tasks.split(","))), limit=limit)
    if replies is not None:
        found, details = _grade_recorded(options, replies, settings, chosen, roles)
    else:
        assert settings is not None
        found, details = _generate_and_grade(options, settings, chosen, roles, console)
    summary = {"suite": options.suite, "data": str(data), **source, **details, **tables.summary(found, highest)}
    path = directory / f"{options.suite}.json"
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(tables.rows(found), path.with_suffix(".parquet"), compression="zstd")
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(tables.shown(summary, options.suite))
    console.print(f"  {path}\n  {path.with_suffix('.parquet')}", soft_wrap=True)
    return path


def _read_source(options: EvaluationOptions) -> tuple[Config | None, Path, dict[str, Any]]:
    """Return the configuration, the output directory, and a description of the evaluated model or replies."""
    if options.run is not None and options.configs:
        raise InputError("--config: a run has its own configuration; give --run or --config")
    directory = run_directory(options.run) if options.run is not None else None
    out = options.out or directory
    if out is None:
        raise InputError("--out: without --run there is no directory to write to; name one")
    if options.replies is not None and not options.configs and directory is None:
        if options.overrides:
            raise InputError(f"{options.overrides[0]!r}: replies from elsewhere have no configuration; give --config")
        return None, out / "evaluation", {"of": str(options.replies)}
    path = directory / "config.yaml" if directory is not None else merge_configs(options.configs)
    config = load_config(path, options.overrides)
    make_absolute(config)
    source: dict[str, Any] = {"of": str(options.replies or config.model.path)}
    if directory is not None and options.replies is None:
        newest = CheckpointManager(directory).newest()
        if newest is None:
            raise InputError(f"{directory} has no checkpoint yet; --config evaluates the model that it started from")
        config.model.path = str(newest.directory.absolute())
        source = {"of": f"{directory.name} after iteration {newest.iteration}", "iteration": newest.iteration}
    return config, out / "evaluation", source


def _keep_raters(config: Config | None, names: list[str]) -> None:
    """Remove the raters that are not used. Raises InputError for a name that is not configured."""
    present = [rater.name for rater in config.reward.functions] if config else []
    for name in names:
        if name not in present:
            known = ", ".join(present) or "none; give --config with a configuration that has raters"
            raise InputError(f"there is no rater {name!r}; reward.functions: {known}")
    if config is not None:
        config.reward.functions = [rater for rater in config.reward.functions if rater.name in names]


def _grade_recorded(
    options: EvaluationOptions, replies: Path, config: Config | None, chosen: TaskFilter, roles: dict[str, Any]
) -> tuple[list[GradedItem], dict[str, Any]]:
    """Score replies from a file in this process. Return the graded items, and the versions of the raters."""
    specs = config.reward.functions if config else []
    for spec in specs:
        check_rater(spec)
    raters = [ClassSpec(target=spec.target, kwargs=dict(spec.kwargs), name=spec.name).build() for spec in specs]
    seconds = config.reward.score_timeout_s if config else 0.0
    items = list(chosen.of(SUITES[options.suite].read(options.data, chosen, sounds=False)))
    tasks = {item.task for item in items} if not chosen.limit else set()
    graders = Graders(
        rate=lambda spoken, names: score_replies([r for r in raters if r.name in names], spoken, seconds), **roles
    )
    found = [item for batch in read_replies(replies, items, tasks) for item in grade(batch, graders)]
    return found, {"raters": {rater.name: rater.version for rater in raters}}


def _generate_and_grade(
    options: EvaluationOptions, config: Config, chosen: TaskFilter, roles: dict[str, Any], console: Console
) -> tuple[list[GradedItem], dict[str, Any]]:
    """Generate replies with the actor pools of a run, and score them."""
    from cluster.waiting import ActorFailed, CallTimeout
    from controller.launcher import RunFailed, join_cluster, silence_ray
    from evaluation.benchmarks.generation import BenchmarkModel

    model = BenchmarkModel(config, options.temperature, lambda kind, **fields: _print_event(console, kind, fields))
    suite = SUITES[options.suite]
    # Reads every row once, so that a bad row is reported before Ray starts.
    count = sum(1 for _ in chosen.of(suite.read(options.data, chosen, sounds=False)))
    items = chosen.of(suite.read(options.data, chosen, sounds=True))
    join_cluster(config)
    silence_ray()
    found: list[GradedItem] = []
    try:
        graders = Graders(rate=model.rate, **roles)
        for answered in _with_progress(model.ask(items), count, console):
            found += grade(answered, graders)
    except (ActorFailed, CallTimeout) as error:
        raise RunFailed(str(error)) from error
    finally:
        import ray

        model.close()
        ray.shutdown()
    return found, {"raters": model.versions, "sampling": asdict(model.sampling), "seed": config.run.seed}


def _with_progress(batches: Iterator[list[AnsweredItem]], count: int, console: Console) -> Iterator[list[AnsweredItem]]:
    """Yield the batches, and print how many items are done after each."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        console.print(f"  [dim]{done:,} of {count:,} items scored[/]")


def _print_event(console: Console, kind: str, fields: dict[str, object]) -> None:
    """Print an event that concerns a lost actor, a failed task or missing resources."""
    if kind in ("actor_died", "task_failed", "waiting_for_resources"):
        console.print(
            f"  {kind}: {fields.get('member', '')} {fields.get('reason', fields.get('error', ''))}", markup=False
        )
