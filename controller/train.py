"""`duet train`, the driver: checks the input, joins Ray, hands the job to the controller, shows how it goes."""

import logging
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from cluster import local
from controller.arithmetic import arithmetic
from controller.claim import Claim
from controller.config import Config
from controller.metrics.endpoint import Endpoint
from controller.paths import make_absolute
from controller.placing import of_our_own
from controller.resuming import Resumption, check_data
from speech.errors import InputError
from speech.secrets import redact


class RunFailed(RuntimeError):
    """A run ended before its end. The message says whose fault it was and where to look, without any secret."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ControllerDied(RunFailed):
    """The controller's process is gone, or gives no answer."""


def train(config: Config) -> Path:
    """Runs a new job to its end. Returns the run's directory. Raises InputError before anything is written."""
    directory = _directory(config)
    make_absolute(config)
    return _work(config, directory, None)


def go_on(resumption: Resumption) -> Path:
    """Goes on with a run, to its end. Returns its directory. Raises InputError before anything is written."""
    config, directory = resumption.config, resumption.directory.absolute()
    config.run.name, config.run.directory = directory.name, str(directory.parent)  # it may have been moved
    Claim.take(directory).release()  # better to know before Ray is started
    return _work(config, directory, resumption)


def _work(config: Config, directory: Path, resumption: Resumption | None) -> Path:
    # tokenizers and Arrow, once the configuration is known to be good
    from controller.inputs import fingerprints, newest_checkpoint, read_inputs

    inputs = read_inputs(config)
    if resumption is not None and resumption.checkpoint is not None:
        resumption = replace(resumption, checkpoint=newest_checkpoint(config, directory))
        check_data(resumption.checkpoint.state.get("data", {}), fingerprints(inputs))
    if config.metrics.port and not (config.cluster.address or os.environ.get("RAY_ADDRESS")):
        # The controller will be on this machine: better to know before Ray is started for it.
        Endpoint(config.metrics.host, config.metrics.port).probe()
    console = Console(highlight=False)
    _introduce(console, config, directory, len(inputs.prompts), len(inputs.demonstrations))
    if resumption is not None:
        _introduce_resumption(console, resumption)
    del inputs
    join_cluster(config)
    quieten()
    try:
        from controller.following import Following

        summary = Following(config, directory, console).to_the_end(resumption.changes if resumption else None)
    finally:
        import ray

        ray.shutdown()
    _conclude(console, directory, summary)
    return directory


def _directory(config: Config) -> Path:
    if config.run.name == "auto":
        config.run.name = f"{Path(config.model.family).name}-{datetime.now():%Y%m%d-%H%M%S}"
    directory = (Path(config.run.directory) / config.run.name).absolute()
    if (directory / "config.yaml").exists():
        raise InputError(f"run.name: {directory} already holds a run; choose another run.name")
    return directory


def _introduce(console: Console, config: Config, directory: Path, prompts: int, demonstrations: int) -> None:
    console.print(f"duet train  [bold]{config.run.name}[/]  seed {config.run.seed}")
    lines = [
        ("model", f"{config.model.family}, {config.model.dtype}"),
        ("data", f"{prompts:,} prompts, {demonstrations:,} demonstrations"),
        *arithmetic(config),
        (
            "members",
            f"{config.rollout.workers} rollout, {config.reward.servers} reward, "
            + (f"{config.reward.decoders.members} decoder, " if config.reward.decoders.members else "")
            + f"{config.learner.ranks} learner (ZeRO {config.learner.zero_stage})",
        ),
        ("directory", str(directory)),
    ]
    for what, how_much in lines:
        console.print(f"  [dim]{what:<26}[/]{how_much}", soft_wrap=True)


def _introduce_resumption(console: Console, resumption: Resumption) -> None:
    checkpoint = resumption.checkpoint
    where = (
        f"after iteration {checkpoint.iteration}" if checkpoint else "from its beginning: there is no checkpoint yet"
    )
    console.print(f"  [dim]{'goes on':<26}[/]{where}", soft_wrap=True)
    for key, (old, new) in resumption.changes.items():
        console.print(f"  [dim]{'changed':<26}[/]{key}: {old!r} → {new!r}", soft_wrap=True)


def join_cluster(config: Config) -> None:
    """The cluster that the configuration or the environment names, else one that is started here."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        join(address)
        return
    local.start(*of_our_own(config, os.cpu_count() or 1))


def quieten() -> None:
    """Ray prints a page of advice for every process that dies. What died, of what, and what follows is said by us."""
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_, **__: None  # there is no public switch for these


def join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"cluster.address: no Ray cluster can be joined at {address}: {error}") from error


def _conclude(console: Console, directory: Path, summary: dict) -> None:
    from controller.outcome import final_table

    sets = [
        name for name, value in summary.items() if isinstance(value, dict) and "before" in value and "after" in value
    ]
    sets = [name for name in sets if isinstance(summary[name]["before"], dict)]
    console.print(
        final_table(
            {name: summary[name]["before"] for name in sets},
            {name: summary[name]["after"] for name in sets},
            {name: summary[name]["standard_error_of_change"] for name in sets},
            {
                "plots": [short(directory / name) for name in ("lambda.png", "scores.png")],
                "recordings (question, before, after)": [
                    short(question.with_name(question.name.replace("-question", f"-{what}")))
                    for question in sorted((directory / "audio").glob("*-question.wav"))[:2]
                    for what in ("question", "before", "after")
                ],
                "records": [short(directory / "summary.json"), short(directory / "checkpoints")],
            },
        )
    )


def short(path: Path) -> Path:
    """Relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
