"""From `duet train` to its first iteration: the playground as it is shipped, in a warm environment.

Everything that a user waits for is in it: the command's own start, Ray, the controller, all members with their models,
and the held-out questions that are asked before anything is trained.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from bench.rows import Row, row
from bench.setting import ROOT

SECONDS = 300.0
"""For a run of one iteration, with its evaluations."""
MARKS = ("starting Ray actors", "evaluating on held-out questions, before", "  1/1 ")
"""What the lines say at which something begins: members start, members are up, the first iteration is done."""


def start() -> list[float]:
    """Seconds from the command to each of the marks."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-u", "-m", "controller", "train", "run.iterations=1", f"run.directory={directory}"]
        began = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            said: list[str] = []
            found = dict(_marks(process, began, said))
            if process.wait(timeout=SECONDS) or len(found) < len(MARKS):
                raise RuntimeError("duet train did not come to its end:\n" + "".join(said[-40:]))
    return [found[mark] for mark in MARKS]


def _marks(process: subprocess.Popen, began: float, said: list[str]) -> Iterator[tuple[str, float]]:
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        for mark in MARKS:
            if mark in line:
                yield mark, time.perf_counter() - began


def measure(repeats: int) -> list[Row]:
    """A start that does not count, which warms the environment, and so many that do."""
    start()
    actors, up, first = zip(*(start() for _ in range(repeats)), strict=True)
    return [
        row("seconds from `duet train` to the end of its first iteration", first, "≤ 60"),
        row("seconds from `duet train` to the start of its members", actors, ""),
        row("seconds from `duet train` until all members are up", up, ""),
    ]
