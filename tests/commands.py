"""The command line as a user calls it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def duet(root: Path, *arguments: str, seconds: float = 280) -> subprocess.CompletedProcess:
    """`duet ARGUMENTS` in a process of its own, without a Ray cluster to join."""
    return subprocess.run(
        [sys.executable, "-m", "duet", *arguments],
        cwd=root,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class Job:
    """`duet ARGUMENTS` that goes on while a test does something else. A context manager: nothing of it outlives it."""

    def __init__(self, root: Path, output: Path, *arguments: str, **environment: str) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "duet", *arguments],
                cwd=root,
                env=_environment() | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._output.read_text("utf-8", errors="replace")

    @property
    def processes(self) -> list[psutil.Process]:
        """It, and all that it has started."""
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def until(self, met: Callable[[str], bool], what: str, seconds: float = 200) -> None:
        """Waits until `met` is true of what it has said."""
        deadline = time.monotonic() + seconds
        while not met(self.output):
            assert self.process.poll() is None, f"it ended with {self.process.returncode} before {what}\n{self.output}"
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n{self.output}"
            time.sleep(0.1)

    def stop(self, seconds: float = 200) -> int:
        """SIGTERM, as Ctrl-C, which a shell makes its background jobs ignore. Returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for process in reversed(self.processes):
                with contextlib.suppress(psutil.Error):  # gone meanwhile
                    process.kill()
        self.process.wait()


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
