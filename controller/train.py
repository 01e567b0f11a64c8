"""`duet train`, the driver: checks the input, joins Ray, hands the job to the controller, shows how it goes."""

import logging
import os
import signal
from datetime import datetime
from pathlib import Path

from rich.console import Console

from controller.config import Config, arithmetic
from controller.metrics import Metrics
from controller.progress import Progress
from speech.errors import InputError

POLL_SECONDS = 0.5
ANSWER_SECONDS = 120.0
"""How long the controller may be silent when asked how it goes."""


class RunFailed(RuntimeError):
    """A run ended before its end. The message says whose fault it was and where to look."""


def train(config: Config) -> Path:
    """Runs a job to its end. Returns the run's directory. Raises InputError before anything is written."""
    directory = _directory(config)
    _make_absolute(config)
    from controller import assembly  # torch and vLLM's rooms, once the configuration is known to be good

    inputs = assembly.read_inputs(config)
    if config.metrics.port and not (config.cluster.address or os.environ.get("RAY_ADDRESS")):
        # The controller will be on this machine: better to know before Ray is started for it.
        probe = Metrics(config.metrics.host, config.metrics.port)
        probe.start()
        probe.close()
    console = Console(highlight=False)
    _introduce(console, config, directory, len(inputs.prompts), len(inputs.demonstrations))
    del inputs
    _join_cluster(config)
    try:
        summary = _watch(console, config, directory)
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


def _make_absolute(config: Config) -> None:
    """Actors do not share the driver's working directory."""
    config.run.directory = str(Path(config.run.directory).absolute())
    config.model.checkpoint = str(Path(config.model.checkpoint).absolute())
    config.data.prompts = str(Path(config.data.prompts).absolute())
    config.data.demonstrations = str(Path(config.data.demonstrations).absolute())
    config.data.held_out = {name: str(Path(path).absolute()) for name, path in config.data.held_out.items()}
    if config.preference.pairs.file:
        config.preference.pairs.file = str(Path(config.preference.pairs.file).absolute())
    config.reward.codec.arguments["path"] = str(Path(config.reward.codec.arguments["path"]).absolute())


def _introduce(console: Console, config: Config, directory: Path, prompts: int, demonstrations: int) -> None:
    console.print(f"duet train  [bold]{config.run.name}[/]  seed {config.run.seed}")
    lines = [
        ("model", f"{config.model.family}, {config.model.dtype}"),
        ("data", f"{prompts:,} prompts, {demonstrations:,} demonstrations"),
        *arithmetic(config),
        (
            "members",
            f"{config.rollout.workers} rollout, {config.reward.servers} reward, {config.learner.ranks} learner "
            f"(ZeRO {config.learner.zero_stage})",
        ),
        ("directory", str(directory)),
    ]
    for what, how_much in lines:
        console.print(f"  [dim]{what:<26}[/]{how_much}", soft_wrap=True)


def _join_cluster(config: Config) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Says at every start that the cluster asks for a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    import ray

    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    needed = 1 + sum(
        members * cpus
        for members, cpus in (
            (config.rollout.workers, config.rollout.cpus),
            (config.reward.servers, config.reward.cpus),
            (config.learner.ranks, config.learner.cpus),
        )
    )
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(needed)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _watch(console: Console, config: Config, directory: Path) -> dict:
    """Hands the job over and shows how it goes to its end. Ctrl-C or SIGTERM end it in order, a second one at once."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    from cluster.waiting import MemberFailed, Overdue
    from controller.actor import Controller
    from controller.display import Display

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray, which sets a handler of its own
    # Three threads: the run itself, the answers to the display, and a request to stop.
    controller = ray.remote(Controller).options(num_cpus=0, max_concurrency=3).remote(config, directory)
    try:
        address = ray.get(controller.metrics_address.remote(), timeout=ANSWER_SECONDS)
        console.print(f"  [dim]{'metrics':<26}[/]{address}", soft_wrap=True)
        job = controller.run.remote()
        with Display(config.run.name, console, scores=list(config.reward.total)) as display:
            try:
                _follow(controller, job, display)
            except KeyboardInterrupt:
                ray.get(controller.stop.remote(), timeout=ANSWER_SECONDS)
                display.update(Progress(stage="stopping after this iteration", iterations_total=config.run.iterations))
                _follow(controller, job, display)
        return ray.get(job, timeout=ANSWER_SECONDS)
    except RayActorError as error:
        refusal = _refusal(error)
        raise (InputError(refusal) if refusal else RunFailed(f"the controller died: {error}")) from error
    except (MemberFailed, Overdue, GetTimeoutError) as error:
        raise RunFailed(f"the controller does not answer: {error}") from error
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from error
        logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
        raise RunFailed(
            f"{type(error.cause).__name__}: {error.cause}\n  what happened: {directory / 'events.jsonl'}\n"
            f"  logs of all members: {logs}"
        ) from error


def _follow(controller, job, display) -> None:
    """Shows progress until the job has ended, well or badly."""
    import ray

    from cluster.waiting import gather

    ended: list[ray.ObjectRef] = []
    while not ended:
        ended, _ = ray.wait([job], timeout=POLL_SECONDS)
        answer = gather(
            {"controller": controller.progress.remote(display.seen)}, ANSWER_SECONDS, "telling its progress"
        )
        display.update(answer["controller"])


def _refusal(error: Exception) -> str | None:
    """The message of the InputError that kept the controller from starting, found in Ray's text; else None."""
    for line in str(error).splitlines():
        _, found, message = line.partition("InputError: ")
        if found:
            return message
    return None


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
                "plots": [_short(directory / name) for name in ("lambda.png", "scores.png")],
                "recordings (question, before, after)": [
                    _short(question.with_name(question.name.replace("-question", f"-{what}")))
                    for question in sorted((directory / "audio").glob("*-question.wav"))[:2]
                    for what in ("question", "before", "after")
                ],
                "records": [_short(directory / "summary.json"), _short(directory / "checkpoints")],
            },
        )
    )


def _short(path: Path) -> Path:
    """Relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
