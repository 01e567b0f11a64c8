"""Run the missing runs of a comparison sequentially, each in its own `duet train` process."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.errors import InputError
from controller.launcher import RunFailed
from evaluation.ablation.arms import RunPlan, check_arm_settings
from observability.run_directory import read_summary

LOCK = ".compare.lock"
STOPS = (signal.SIGTERM, signal.SIGHUP)
"""Signals handled like Ctrl-C."""


def has_summary(plan: RunPlan) -> bool:
    """Return whether the run ended. It may have been stopped before its last iteration."""
    return (plan.directory / "summary.json").is_file()


def finished(plan: RunPlan) -> bool:
    """Return whether the run completed all iterations."""
    return has_summary(plan) and read_summary(plan.directory).get("iterations") == plan.config.train.num_steps


def run_missing(plans: Sequence[RunPlan], directory: Path) -> None:
    """Run every unfinished plan in order and print progress. Finished runs are kept.

    Raises:
        InputError: Before any run starts, if an existing run has other settings or another comparison uses this
            directory.
        RunFailed: If a run fails.
        KeyboardInterrupt: If interrupted.
    """
    for plan in plans:
        if has_summary(plan):
            check_arm_settings(plan)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory) as lock:
        minutes: list[float] = []
        waiting = [plan for plan in plans if not finished(plan)]
        for place, plan in enumerate(plans, 1):
            head = f"{place:>{len(str(len(plans)))}}/{len(plans)}  {plan.name}"
            if plan not in waiting:
                minutes.append(read_summary(plan.directory)["seconds"]["total"] / 60)
                print(f"{head}: already finished ({minutes[-1]:.1f} min)", flush=True)
                continue
            _move_aside(plan)
            print(f"{head}: running{_left(minutes, waiting[waiting.index(plan) :])}, log {plan.log}", flush=True)
            begun = time.monotonic()
            _run(plan, lock)
            minutes.append((time.monotonic() - begun) / 60)
            print(f"{head}: done in {minutes[-1]:.1f} min", flush=True)


def _left(minutes: list[float], waiting: list[RunPlan]) -> str:
    """Return the estimated remaining time, from the mean duration of earlier runs."""
    return f", about {len(waiting) * sum(minutes) / len(minutes):.0f} min left" if minutes else ""


@contextmanager
def _locked(directory: Path) -> Iterator[BinaryIO]:
    """Lock the directory. A second comparison would treat a running run as interrupted."""
    with (directory / LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{directory}: another comparison or its run uses it; wait, or choose another --directory"
            ) from error
        yield file


def _move_aside(plan: RunPlan) -> None:
    """Rename the directory of an interrupted attempt. Deletes nothing."""
    if not plan.directory.exists():
        return
    number = 1
    while (aside := plan.directory.with_name(f"{plan.name}.interrupted-{number}")).exists():
        number += 1
    plan.directory.rename(aside)
    print(f"{plan.directory} was interrupted: moved to {aside}, running again", flush=True)


def _run(plan: RunPlan, lock: BinaryIO) -> None:
    command = [sys.executable, "-m", "duet", "train", *plan.arguments]
    with plan.log.open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            process_group=0,  # a terminal sends Ctrl-C to the group; in its own group, the child gets only ours
            pass_fds=[lock.fileno()],  # keeps the lock until the run ends, even if this process is killed
        )
        code = _wait(child)
    if code or not finished(plan):
        what = f"ended with exit code {code}" if code else f"ended before iteration {plan.config.train.num_steps}"
        raise RunFailed(
            f"{plan.name} {what}: {_last_words(plan.log)}\n  its output: {plan.log}\n"
            "  the same command continues with this run and keeps finished ones"
        )


def _wait(child: subprocess.Popen) -> int:
    """Return the child's exit code. Forward Ctrl-C: 1 stops gracefully, 2 stop immediately, 3 kill the child."""
    asked = 0
    with _as_interrupts(STOPS):
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                asked += 1
                if asked > 2:
                    child.kill()
                else:
                    child.send_signal(signal.SIGINT)
                if asked == 1:
                    print("stopping the run gracefully; press Ctrl-C again to stop immediately", flush=True)
    if asked:
        raise KeyboardInterrupt
    return code


@contextmanager
def _as_interrupts(signals: Sequence[signal.Signals]) -> Iterator[None]:
    heard = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    earlier = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _last_words(log: Path) -> str:
    """Return the last message of the command line, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("duet: ") for line in lines if line.startswith("duet: ")]
    return (said or lines or ["it printed nothing"])[-1]
