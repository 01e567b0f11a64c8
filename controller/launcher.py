"""A job as the driver sees it: handed to a controller, shown as it goes, handed to another when that one dies.

`duet train`, the driver: checks the input, joins Ray, hands the job to the controller, shows how it goes.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from cluster import ray_cluster
from cluster.post_mortem import describe
from cluster.ray_cluster import join
from cluster.waiting import ActorFailed, CallTimeout, gather
from common.errors import InputError
from common.secrets import redact
from configs.load import make_absolute
from configs.schema import Config
from configs.validate import batch_summary, local_cluster_resources
from controller.actor import Controller
from controller.checkpointing import ResumePlan, check_data_unchanged, is_finished
from controller.inputs import newest_checkpoint
from observability.console import Display
from observability.iteration import Progress
from observability.metrics.server import MetricsServer
from observability.run_directory import RunDirectory, RunLock, read_summary


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


def resume_training(resumption: ResumePlan) -> Path:
    """Goes on with a run, to its end. Returns its directory. Raises InputError before anything is written."""
    config, directory = resumption.config, resumption.directory.absolute()
    config.run.name, config.run.directory = directory.name, str(directory.parent)  # it may have been moved
    RunLock.take(directory).release()  # better to know before Ray is started
    return _work(config, directory, resumption)


def _work(config: Config, directory: Path, resumption: ResumePlan | None) -> Path:
    # tokenizers and Arrow, once the configuration is known to be good
    from controller.inputs import fingerprints, newest_checkpoint, read_inputs

    inputs = read_inputs(config)
    if resumption is not None and resumption.checkpoint is not None:
        resumption = replace(resumption, checkpoint=newest_checkpoint(config, directory))
        check_data_unchanged(resumption.checkpoint.state.get("data", {}), fingerprints(inputs))
    if config.metrics.port and not (config.cluster.address or os.environ.get("RAY_ADDRESS")):
        # The controller will be on this machine: better to know before Ray is started for it.
        MetricsServer(config.metrics.host, config.metrics.port).probe()
    console = Console(highlight=False)
    _introduce(console, config, directory, len(inputs.prompts), len(inputs.demonstrations))
    if resumption is not None:
        _introduce_resumption(console, resumption)
    del inputs
    join_cluster(config)
    silence_ray()
    try:
        pass

        summary = RunMonitor(config, directory, console).to_the_end(resumption.changes if resumption else None)
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
        *batch_summary(config),
        (
            "members",
            f"{config.rollout.num_workers} rollout, {config.reward.num_servers} reward, "
            + (f"{config.reward.decoders.num_workers} decoder, " if config.reward.decoders.num_workers else "")
            + f"{config.learner.num_workers} learner (ZeRO {config.learner.zero_stage})",
        ),
        ("directory", str(directory)),
    ]
    for what, how_much in lines:
        console.print(f"  [dim]{what:<26}[/]{how_much}", soft_wrap=True)


def _introduce_resumption(console: Console, resumption: ResumePlan) -> None:
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
    ray_cluster.start(*local_cluster_resources(config, os.cpu_count() or 1))


def silence_ray() -> None:
    """Ray prints a page of advice for every process that dies. What died, of what, and what follows is said by us."""
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_, **__: None  # there is no public switch for these


def _conclude(console: Console, directory: Path, summary: dict) -> None:
    from observability.console import final_table

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


POLL_SECONDS = 0.5


RESTARTS = 2
"""Controllers that may die one after another at the same checkpoint before the run is given up."""


ANSWER_SECONDS = 120.0
"""How long the controller may be silent when asked how it goes."""


Changes = Mapping[str, tuple[object, object]]
"""Settings of a run that goes on that are not what they were: old and new, by key."""


class RunMonitor:
    """Follows one job to its end."""

    def __init__(self, config: Config, directory: Path, console: Console) -> None:
        self._config, self._directory = config, directory
        self._display = Display(config.run.name, console, scores=list(config.reward.weights))
        self._stopping = False

    def to_the_end(self, changes: Changes | None) -> dict:
        """The job's summary. changes: of a run that goes on; None for a new one. Raises InputError, RunFailed."""
        lost: list[int] = []
        with self._display:
            while True:
                try:
                    return self._attempt(changes)
                except ControllerDied as error:
                    if not (self._directory / "config.yaml").is_file():
                        raise
                    if is_finished(self._directory):
                        return read_summary(self._directory)
                    checkpoint = newest_checkpoint(self._config, self._directory)
                    lost.append(checkpoint.iteration if checkpoint else 0)
                    if lost.count(lost[-1]) > RESTARTS:
                        raise
                    changes = {}
                    RunDirectory.open(self._directory).add_event(
                        "controller_died", reason=str(error), iteration=lost[-1]
                    )
                    self._display.note(f"{error}; a new one goes on after iteration {lost[-1]}")

    def _attempt(self, changes: Changes | None) -> dict:
        """Ctrl-C or SIGTERM end the job in order, a second one at once."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray, which sets a handler of its own
        # Three threads: the run itself, the answers to the display, and a request to stop.
        # Ray's store would keep an account of every question how it goes, up to a hundred thousand of them.
        # Detached: it must not end with a driver that has no time to wait for the checkpoint (cluster/ray_cluster.py).
        # Beside the driver: to Ray it weighs nothing, and would go with a node that an autoscaler holds for idle.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        remote = ray.remote(Controller).options(
            num_cpus=0, max_concurrency=3, enable_task_events=False, lifetime="detached", scheduling_strategy=here
        )
        controller = remote.remote(self._config, self._directory, changes)
        self._display.begin()
        try:
            address = ray.get(controller.metrics_address.remote(), timeout=ANSWER_SECONDS)
            self._display.note(f"metrics: {address}")
            job = controller.run.remote()
            if self._stopping:  # it was told to the one that died
                self._stop(controller)
            try:
                self._follow(controller, job)
            except KeyboardInterrupt:
                self._stop(controller)
                self._follow(controller, job)
            return ray.get(job, timeout=ANSWER_SECONDS)
        except RayTaskError as error:  # before MemberFailed, which Ray may make it look like
            if isinstance(error.cause, InputError):
                raise error.cause from error
            raise self._failed(error) from error
        except (RayActorError, OutOfMemoryError, ActorFailed, CallTimeout, GetTimeoutError) as error:
            if refusal := _refusal(error):
                raise InputError(refusal) from error
            if isinstance(error, CallTimeout | GetTimeoutError):
                raise ControllerDied(f"the controller does not answer: {error}") from error
            cause = error.post_mortem if isinstance(error, ActorFailed) else describe(error, controller)
            raise ControllerDied(f"the controller died: {cause}") from error
        finally:
            with suppress(Exception):  # it may still be at work, or be gone already
                ray.kill(controller)

    def _stop(self, controller) -> None:
        self._stopping = True
        ray.get(controller.stop.remote(), timeout=ANSWER_SECONDS)
        total = self._config.train.num_steps
        self._display.update(Progress(stage="stopping after this iteration", iterations_total=total))

    def _follow(self, controller, job: ray.ObjectRef) -> None:
        """Shows progress until the job has ended, well or badly."""
        done: list[ray.ObjectRef] = []
        while not done:
            done, _ = ray.wait([job], timeout=POLL_SECONDS)
            asked = {"controller": controller.progress.remote(self._display.seen)}
            self._display.update(gather(asked, ANSWER_SECONDS, "telling its progress")["controller"])

    def _failed(self, error: RayTaskError) -> RunFailed:
        logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
        lines = [
            f"{type(error.cause).__name__}: {error.cause}",
            f"  what happened: {self._directory / 'events.jsonl'}",
            f"  logs of all members: {logs}",
        ]
        if (self._directory / "checkpoints").is_dir():
            lines.append(f"  to go on once it is mended: duet train --resume {short(self._directory)}")
        return RunFailed("\n".join(lines))


def _refusal(error: Exception) -> str | None:
    """The message of the InputError that kept the controller from starting, found in Ray's text; else None."""
    for line in str(error).splitlines():
        _, found, message = line.partition("InputError: ")
        if found:
            return message
    return None
