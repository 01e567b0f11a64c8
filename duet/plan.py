"""`duet plan CONFIG`: how many rollout, reward and learner members a job needs so that none waits for another.

    duet plan configs/playground.yaml                         after a short measurement of this configuration
    duet plan configs/playground.yaml --run runs/first        from the records of a run, such as a smaller one

Seconds of one member for one reply are measured; what an iteration takes with other numbers of members follows from
them. The learner's ranks are taken as configured: they cannot change while a job runs.
"""

import argparse
import copy
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.errors import InputError
from configs.load import load_config
from configs.schema import Config
from deploy.sizing import ROLES, Forecast, Rates, Sizes, forecast, smallest_sizes
from observability.run_directory import run_directory

ITERATIONS = 4
"""Of a short measurement."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `duet plan`."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of the job to be planned")
    parser.add_argument("--run", type=Path, metavar="RUN", help="take the rates from this run, and measure nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example learner.num_workers=4")


def run(options: argparse.Namespace) -> None:
    """Prints what is measured, and what follows. Raises InputError for a configuration or a run that will not do."""
    config = load_config(options.config, options.overrides)
    if config.algorithm.dpo.pairs_file:
        raise InputError("algorithm.dpo.pairs_file: a job on recorded pairs has no rollout workers to plan")
    console = Console(highlight=False)
    if options.run is not None:
        rates = of_run(run_directory(options.run))
    else:
        console.print(f"measuring: {ITERATIONS} iterations of this configuration, with all its members")
        rates = short_measurement(config)
    show(console, config, rates)


def of_run(directory: Path) -> Rates:
    from deploy.sizing import measured_rates

    return measured_rates(directory, load_config(directory / "config.yaml", []))


def short_measurement(config: Config) -> Rates:
    """Runs a few iterations of the job, in a directory that is removed."""
    from controller.launcher import train

    trial = copy.deepcopy(config)
    with tempfile.TemporaryDirectory(prefix="duet-plan-") as directory:
        trial.run.name, trial.run.directory = "trial", directory
        trial.train.num_steps, trial.checkpoint.interval = ITERATIONS, 0
        trial.data.validation, trial.validation.recording_interval, trial.reward.audio_quality_fn = {}, 0, ""
        with redirect_stdout(io.StringIO()):  # it says where its records are, which will be gone
            run = train(trial)
        return of_run(run)


def show(console: Console, config: Config, rates: Rates) -> None:
    """The rates, and what an iteration takes as configured and with the fewest members that keep the learner busy."""
    replies, prompts = config.replies, config.rollout.batch_size
    configured = Sizes(
        rollout=config.rollout.num_workers, reward=config.reward.num_servers, learner=config.learner.num_workers
    )
    enough = smallest_sizes(rates, replies, config.learner.num_workers, prompts)
    console.print(
        f"one member, one reply of {rates.tokens:.0f} tokens: rollout {1e3 * rates.rollout:.3g} ms, reward "
        f"{1e3 * rates.reward:.3g} ms, learner {1e3 * rates.learner:.3g} ms; sync {1e3 * rates.sync:.3g} ms"
    )
    console.print(f"an iteration of {prompts} prompts × {config.rollout.n} = {replies} replies:")
    table = Table("members", *ROLES, "seconds", "slowest", "learner idle", box=None, pad_edge=False)
    for name, sizes in (("configured", configured), ("fewest", enough)):
        for overlapped in (False, True):
            table.add_row(*_line(name, forecast(rates, sizes, replies, overlapped=overlapped)))
    console.print(table)
    console.print(_advice(forecast(rates, enough, replies, overlapped=True), configured, prompts))


def _line(name: str, found: Forecast) -> list[str]:
    return [
        f"{name}, overlapped" if found.overlapped else name,
        *(str(getattr(found.sizes, role)) for role in ROLES),
        f"{found.seconds:.2f}",
        found.bottleneck,
        f"{found.idle('learner'):.0%}",
    ]


def _advice(found: Forecast, configured: Sizes, prompts: int) -> str:
    """What to set, in a sentence."""
    sizes = found.sizes
    said = (
        f"rollout.num_workers={sizes.rollout} reward.num_servers={sizes.reward} for learner.num_workers={sizes.learner}"
    )
    if prompts in (sizes.rollout, sizes.reward) and found.bottleneck != "learner":
        return f"{said}: as many as there are prompts, and {found.bottleneck} is the slowest all the same"
    if sizes == configured:
        return f"{said}: as it is configured"
    return f"{said}: the fewest that keep the learner from waiting while roles overlap"
