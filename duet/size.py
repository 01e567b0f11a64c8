"""`duet size`: how many rollout, reward and learner actors a job needs so that none waits for another."""

import copy
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import InputError
from configs.load import load_config
from configs.schema import Config
from deploy.sizing import ROLES, Forecast, Rates, Sizes, forecast, smallest_sizes
from duet.options import Overrides
from observability.run_directory import run_directory

app = typer.Typer()

NUM_ITERATIONS = 4
"""Length of the trial run."""


@app.command()
def size(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the job")],
    *,
    overrides: Overrides,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="take the rates from this run instead of measuring")
    ] = None,
) -> None:
    """Compute how many actors of each role a job needs.

    Measures the seconds that one actor takes for one reply, and derives the seconds of an iteration with other pool
    sizes. The number of learner ranks stays as configured, because it cannot change while a job runs.

        duet size configs/playground.yaml                      (after a short trial run of this configuration)
        duet size configs/playground.yaml --run runs/first     (from the records of a run, such as a smaller one)
    """
    job = load_config(config, overrides)
    if job.algorithm.dpo.pairs_file:
        raise InputError("algorithm.dpo.pairs_file: a job on recorded pairs has no rollout workers to size; unset it")
    console = Console(highlight=False)
    if run is not None:
        rates = rates_from_run(run_directory(run))
    else:
        console.print(f"measuring: {NUM_ITERATIONS} iterations of this configuration with its pool sizes")
        rates = run_trial(job)
    show(console, job, rates)


def rates_from_run(directory: Path) -> Rates:
    """Read the rates from the records of a run."""
    from deploy.sizing import measured_rates

    return measured_rates(directory, load_config(directory / "config.yaml", []))


def run_trial(config: Config) -> Rates:
    """Run a few iterations of the job in a temporary directory and return its rates."""
    from controller.launcher import train

    trial = copy.deepcopy(config)
    with tempfile.TemporaryDirectory(prefix="duet-size-") as directory:
        trial.run.name, trial.run.directory = "trial", directory
        trial.train.num_steps, trial.checkpoint.interval = NUM_ITERATIONS, 0
        trial.data.validation, trial.validation.recording_interval, trial.reward.audio_quality_fn = {}, 0, ""
        with redirect_stdout(io.StringIO()):  # its output names records that are removed below
            run = train(trial)
        return rates_from_run(run)


def show(console: Console, config: Config, rates: Rates) -> None:
    """Print the rates, and the seconds of an iteration with the configured and with the fewest sufficient actors."""
    replies, prompts = config.replies, config.rollout.batch_size
    configured = Sizes(
        rollout=config.rollout.num_workers, reward=config.reward.num_servers, learner=config.learner.num_workers
    )
    enough = smallest_sizes(rates, replies, config.learner.num_workers, prompts)
    console.print(
        f"one actor, one reply of {rates.tokens:.0f} tokens: rollout {1e3 * rates.rollout:.3g} ms, reward "
        f"{1e3 * rates.reward:.3g} ms, learner {1e3 * rates.learner:.3g} ms; sync {1e3 * rates.sync:.3g} ms"
    )
    console.print(f"an iteration of {prompts} prompts × {config.rollout.n} = {replies} replies:")
    table = Table("actors", *ROLES, "seconds", "slowest", "learner idle", box=None, pad_edge=False)
    for name, sizes in (("configured", configured), ("fewest", enough)):
        for overlapped in (False, True):
            table.add_row(*_format_row(name, forecast(rates, sizes, replies, overlapped=overlapped)))
    console.print(table)
    console.print(_advice(forecast(rates, enough, replies, overlapped=True), configured, prompts))


def _format_row(name: str, found: Forecast) -> list[str]:
    return [
        f"{name}, overlapped" if found.overlapped else name,
        *(str(getattr(found.sizes, role)) for role in ROLES),
        f"{found.seconds:.2f}",
        found.bottleneck,
        f"{found.idle('learner'):.0%}",
    ]


def _advice(found: Forecast, configured: Sizes, prompts: int) -> str:
    """Return one sentence with the settings to use."""
    sizes = found.sizes
    settings = (
        f"rollout.num_workers={sizes.rollout} reward.num_servers={sizes.reward} for learner.num_workers={sizes.learner}"
    )
    if prompts in (sizes.rollout, sizes.reward) and found.bottleneck != "learner":
        return f"{settings}: one actor per prompt; {found.bottleneck} is still the slowest"
    if sizes == configured:
        return f"{settings}: as configured"
    return f"{settings}: the fewest with which the learner does not wait while roles overlap"
