"""The driver of `duet train`: checks the input, joins Ray, starts the controller, shows progress.

If the controller dies, the driver starts another, which resumes from the newest checkpoint.
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
from controller.inputs import newest_checkpoint
from controller.resuming import ResumePlan, check_data_unchanged, is_finished
from observability.console import Display
from observability.iteration import Progress
from observability.metrics.server import MetricsServer
from observability.run_directory import RunDirectory, RunLock, read_summary


class RunFailed(RuntimeError):
    """A run failed. The message names the cause and the logs, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ControllerDied(RunFailed):
    """The controller's process died, or does not answer."""


def train(config: Config) -> Path:
    """Run a new job to completion. Return the run's directory. Raise InputError before anything is written."""
    directory = _directory(config)
    make_absolute(config)
    return _run(config, directory, None)


def resume_training(plan: ResumePlan) -> Path:
    """Resume a run and run it to completion. Return its directory. Raise InputError before anything is written."""
    config, directory = plan.config, plan.directory.absolute()
    config.run.name, config.run.directory = directory.name, str(directory.parent)  # the run may have been moved
    RunLock.acquire(directory).release()  # fail before Ray starts
    return _run(config, directory, plan)


def _run(config: Config, directory: Path, plan: ResumePlan | None) -> Path:
    # Imports tokenizers and Arrow, so only once the configuration is valid.
    from controller.inputs import fingerprints, newest_checkpoint, read_inputs

    inputs = read_inputs(config)
    if plan is not None and plan.checkpoint is not None:
        plan = replace(plan, checkpoint=newest_checkpoint(config, directory))
        check_data_unchanged(plan.checkpoint.state.get("data", {}), fingerprints(inputs))
    if config.metrics.port and not (config.cluster.address or os.environ.get("RAY_ADDRESS")):
        # The controller will run on this machine, so fail before Ray starts.
        MetricsServer(config.metrics.host, config.metrics.port).probe()
    console = Console(highlight=False)
    _print_settings(console, config, directory, len(inputs.prompts), len(inputs.demonstrations))
    if plan is not None:
        _print_plan(console, plan)
    del inputs
    join_cluster(config)
    silence_ray()
    try:
        summary = RunMonitor(config, directory, console).run_to_completion(plan.changes if plan else None)
    finally:
        ray.shutdown()
    _print_summary(console, directory, summary)
    return directory


def _directory(config: Config) -> Path:
    if config.run.name == "auto":
        config.run.name = f"{Path(config.model.family).name}-{datetime.now():%Y%m%d-%H%M%S}"
    directory = (Path(config.run.directory) / config.run.name).absolute()
    if (directory / "config.yaml").exists():
        raise InputError(f"run.name: {directory} already holds a run; choose another run.name")
    return directory


def _print_settings(console: Console, config: Config, directory: Path, prompts: int, demonstrations: int) -> None:
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


def _print_plan(console: Console, plan: ResumePlan) -> None:
    checkpoint = plan.checkpoint
    where = (
        f"after iteration {checkpoint.iteration}" if checkpoint else "from the beginning: there is no checkpoint yet"
    )
    console.print(f"  [dim]{'resumes':<26}[/]{where}", soft_wrap=True)
    for key, (old, new) in plan.changes.items():
        console.print(f"  [dim]{'changed':<26}[/]{key}: {old!r} → {new!r}", soft_wrap=True)


def join_cluster(config: Config) -> None:
    """Join the cluster that the configuration or the environment names. Otherwise start one on this machine."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        join(address)
        return
    ray_cluster.start(*local_cluster_resources(config, os.cpu_count() or 1))


def silence_ray() -> None:
    """Silence Ray's advice on every dead process. Duet reports deaths, their causes and consequences itself."""
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_, **__: None  # Ray has no public switch for it


def _print_summary(console: Console, directory: Path, summary: dict) -> None:
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
    """Return a path relative to the working directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


POLL_INTERVAL_S = 0.5


MAX_RESTARTS = 2
"""Restarts of the controller from the same checkpoint before the run fails."""


ANSWER_TIMEOUT_S = 120.0
"""Timeout of calls to the controller."""


Changes = Mapping[str, tuple[object, object]]
"""Changed settings of a resumed run: old and new value by key."""


class RunMonitor:
    """Runs one job to completion and shows its progress."""

    def __init__(self, config: Config, directory: Path, console: Console) -> None:
        self._config, self._directory = config, directory
        self._display = Display(config.run.name, console, scores=list(config.reward.weights))
        self._stopping = False

    def run_to_completion(self, changes: Changes | None) -> dict:
        """Return the job's summary. changes: changed settings of a resumed run; None for a new one. Raise InputError,
        RunFailed."""
        restarts: list[int] = []
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
                    restarts.append(checkpoint.iteration if checkpoint else 0)
                    if restarts.count(restarts[-1]) > MAX_RESTARTS:
                        raise
                    changes = {}
                    RunDirectory.open(self._directory).add_event(
                        "controller_died", reason=str(error), iteration=restarts[-1]
                    )
                    self._display.note(f"{error}; a new one resumes after iteration {restarts[-1]}")

    def _attempt(self, changes: Changes | None) -> dict:
        """Run the job in a new controller. Ctrl-C or SIGTERM ends it after the iteration, a second one at once."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray, which sets its own handler
        # Three threads: the run, progress calls, and a stop request.
        # Without task events: Ray's store would keep every progress call, up to a hundred thousand.
        # Detached: it must outlive a driver that has no time to wait for the checkpoint (cluster/ray_cluster.py).
        # On the driver's node: it needs no resources, so an autoscaler could remove another node as idle.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        remote = ray.remote(Controller).options(
            num_cpus=0, max_concurrency=3, enable_task_events=False, lifetime="detached", scheduling_strategy=here
        )
        controller = remote.remote(self._config, self._directory, changes)
        self._display.begin()
        try:
            address = ray.get(controller.metrics_address.remote(), timeout=ANSWER_TIMEOUT_S)
            self._display.note(f"metrics: {address}")
            job = controller.run.remote()
            if self._stopping:  # requested from the controller that died
                self._stop(controller)
            try:
                self._follow(controller, job)
            except KeyboardInterrupt:
                self._stop(controller)
                self._follow(controller, job)
            return ray.get(job, timeout=ANSWER_TIMEOUT_S)
        except RayTaskError as error:  # before ActorFailed: Ray's error may be an instance of both
            if isinstance(error.cause, InputError):
                raise error.cause from error
            raise self._failed(error) from error
        except (RayActorError, OutOfMemoryError, ActorFailed, CallTimeout, GetTimeoutError) as error:
            if message := _input_error(error):
                raise InputError(message) from error
            if isinstance(error, CallTimeout | GetTimeoutError):
                raise ControllerDied(f"the controller does not answer: {error}") from error
            cause = error.post_mortem if isinstance(error, ActorFailed) else describe(error, controller)
            raise ControllerDied(f"the controller died: {cause}") from error
        finally:
            with suppress(Exception):  # it may still run, or be dead already
                ray.kill(controller)

    def _stop(self, controller) -> None:
        self._stopping = True
        ray.get(controller.stop.remote(), timeout=ANSWER_TIMEOUT_S)
        total = self._config.train.num_steps
        self._display.update(Progress(stage="stopping after this iteration", iterations_total=total))

    def _follow(self, controller, job: ray.ObjectRef) -> None:
        """Show progress until the job ends."""
        done: list[ray.ObjectRef] = []
        while not done:
            done, _ = ray.wait([job], timeout=POLL_INTERVAL_S)
            refs = {"controller": controller.progress.remote(self._display.seen)}
            self._display.update(gather(refs, ANSWER_TIMEOUT_S, "reporting progress")["controller"])

    def _failed(self, error: RayTaskError) -> RunFailed:
        logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
        lines = [
            f"{type(error.cause).__name__}: {error.cause}",
            f"  events: {self._directory / 'events.jsonl'}",
            f"  logs of all actors: {logs}",
        ]
        if (self._directory / "checkpoints").is_dir():
            lines.append(f"  to continue once the cause is fixed: duet train --resume {short(self._directory)}")
        return RunFailed("\n".join(lines))


def _input_error(error: Exception) -> str | None:
    """Return the message of an InputError of the controller's start, found in Ray's text; else None."""
    for line in str(error).splitlines():
        _, found, message = line.partition("InputError: ")
        if found:
            return message
    return None
