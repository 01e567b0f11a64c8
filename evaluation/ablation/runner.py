"""Runs what is missing of a comparison, one run after another, each a `duet train` of its own."""

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
"""Signals that are taken as Ctrl-C is."""


def has_summary(plan: RunPlan) -> bool:
    """Whether the run came to an end, be it that somebody stopped it before its last iteration."""
    return (plan.directory / "summary.json").is_file()


def finished(plan: RunPlan) -> bool:
    """Whether the run is there and whole."""
    return has_summary(plan) and read_summary(plan.directory).get("iterations") == plan.config.train.num_steps


def run_missing(plans: Sequence[RunPlan], directory: Path) -> None:
    """Runs every plan that is not finished, in order, and says how it goes.

    Raises InputError before anything runs when a finished run has other settings, or when another comparison works
    in this directory; RunFailed when a run fails; KeyboardInterrupt when interrupted. What is finished stays.
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
                print(f"{head}: there already ({minutes[-1]:.1f} min)", flush=True)
                continue
            _move_aside(plan)
            print(f"{head}: running{_left(minutes, waiting[waiting.index(plan) :])}, log {plan.log}", flush=True)
            begun = time.monotonic()
            _run(plan, lock)
            minutes.append((time.monotonic() - begun) / 60)
            print(f"{head}: done in {minutes[-1]:.1f} min", flush=True)


def _left(minutes: list[float], waiting: list[RunPlan]) -> str:
    """How long the waiting runs will take, as far as the ones before them tell."""
    return f", about {len(waiting) * sum(minutes) / len(minutes):.0f} min left" if minutes else ""


@contextmanager
def _locked(directory: Path) -> Iterator[BinaryIO]:
    """Keeps the directory from a second comparison, which would take a run under way for an interrupted one."""
    with (directory / LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{directory}: another comparison, or a run of one, is at work here; wait for it or give --directory"
            ) from error
        yield file


def _move_aside(plan: RunPlan) -> None:
    """Makes room where an earlier attempt was interrupted; nothing is deleted."""
    if not plan.directory.exists():
        return
    number = 1
    while (aside := plan.directory.with_name(f"{plan.name}.interrupted-{number}")).exists():
        number += 1
    plan.directory.rename(aside)
    print(f"{plan.directory} was interrupted: moved to {aside}, and run again", flush=True)


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
            process_group=0,  # a terminal sends Ctrl-C to the group: the child gets ours, once, and not both
            pass_fds=[lock.fileno()],  # the lock lasts as long as the run, even if this process is killed
        )
        code = _wait(child)
    if code or not finished(plan):
        what = f"ended with exit code {code}" if code else f"ended before iteration {plan.config.train.num_steps}"
        raise RunFailed(
            f"{plan.name} {what}: {_last_words(plan.log)}\n  its output: {plan.log}\n"
            "  the same command goes on with this run; those that are finished stay"
        )


def _wait(child: subprocess.Popen) -> int:
    """The child's exit code. Ctrl-C is passed on: once ends the run in order, twice at once, a third time kills it."""
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
                    print("stopping the run in order; once more stops it at once", flush=True)
    if asked:
        raise KeyboardInterrupt
    return code


@contextmanager
def _as_interrupts(signals: Sequence[signal.Signals]) -> Iterator[None]:
    heard = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]  # nohup wants one ignored
    earlier = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _last_words(log: Path) -> str:
    """The last thing that the command line said, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("duet: ") for line in lines if line.startswith("duet: ")]
    return (said or lines or ["it printed nothing"])[-1]
