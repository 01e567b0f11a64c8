"""A job as the driver sees it: handed to a controller, shown as it goes, handed to another when that one dies."""

import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from cluster.postmortem import describe
from cluster.waiting import MemberFailed, Overdue, gather
from controller.actor import Controller
from controller.config import Config
from controller.display import Display
from controller.inputs import newest_checkpoint
from controller.progress import Progress
from controller.records import Records, read_summary
from controller.resuming import ended
from controller.train import ControllerDied, RunFailed, short
from speech.errors import InputError

POLL_SECONDS = 0.5
RESTARTS = 2
"""Controllers that may die one after another at the same checkpoint before the run is given up."""
ANSWER_SECONDS = 120.0
"""How long the controller may be silent when asked how it goes."""

Changes = Mapping[str, tuple[object, object]]
"""Settings of a run that goes on that are not what they were: old and new, by key."""


class Following:
    """Follows one job to its end."""

    def __init__(self, config: Config, directory: Path, console: Console) -> None:
        self._config, self._directory = config, directory
        self._display = Display(config.run.name, console, scores=list(config.reward.total))
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
                    if ended(self._directory):
                        return read_summary(self._directory)
                    checkpoint = newest_checkpoint(self._config, self._directory)
                    lost.append(checkpoint.iteration if checkpoint else 0)
                    if lost.count(lost[-1]) > RESTARTS:
                        raise
                    changes = {}
                    Records.open(self._directory).add_event("controller lost", reason=str(error), iteration=lost[-1])
                    self._display.note(f"{error}; a new one goes on after iteration {lost[-1]}")

    def _attempt(self, changes: Changes | None) -> dict:
        """Ctrl-C or SIGTERM end the job in order, a second one at once."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray, which sets a handler of its own
        # Three threads: the run itself, the answers to the display, and a request to stop.
        # Ray's store would keep an account of every question how it goes, up to a hundred thousand of them.
        # Detached: it must not end with a driver that has no time to wait for the checkpoint (cluster/driver.py).
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
        except (RayActorError, OutOfMemoryError, MemberFailed, Overdue, GetTimeoutError) as error:
            if refusal := _refusal(error):
                raise InputError(refusal) from error
            if isinstance(error, Overdue | GetTimeoutError):
                raise ControllerDied(f"the controller does not answer: {error}") from error
            cause = error.post_mortem if isinstance(error, MemberFailed) else describe(error, controller)
            raise ControllerDied(f"the controller died: {cause}") from error
        finally:
            with suppress(Exception):  # it may still be at work, or be gone already
                ray.kill(controller)

    def _stop(self, controller) -> None:
        self._stopping = True
        ray.get(controller.stop.remote(), timeout=ANSWER_SECONDS)
        total = self._config.run.iterations
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
