"""From `duet train` to its first iteration: the playground as it is shipped, in a warm environment.

Everything that a user waits for is in it: the command's own start, Ray, the controller, all members with their models,
and the held-out questions that are asked before anything is trained.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time

from bench.fixtures import ROOT
from bench.rows import BenchRow, row

UNWANTED = ("RAY_ADDRESS", "FORCE_COLOR", "TTY_COMPATIBLE")
SECONDS = 300.0
"""For a run of one iteration, with its evaluations."""
MARKS = ("starting Ray actors", "evaluating on held-out questions, before", "  1/1 ")
"""What the lines say at which something begins: members start, members are up, the first iteration is done."""


def start() -> list[float]:
    """Seconds from the command to each of the marks."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-u", "-m", "duet", "train", "train.num_steps=1", f"run.directory={directory}"]
        # Nothing that has it join a cluster which is there already, or show itself as on a terminal.
        plain = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        began = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env=plain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            late = threading.Timer(SECONDS, process.terminate)  # it ends its members, and then itself
            late.start()
            try:
                said = [(time.perf_counter() - began, line) for line in process.stdout or ()]
            finally:
                late.cancel()
        found = [[at for at, line in said if mark in line] for mark in MARKS]
        if process.returncode or any(len(times) != 1 for times in found):
            raise RuntimeError("duet train did not go as it should:\n" + "".join(line for _, line in said[-40:]))
    return [at for (at,) in found]


def measure(repeats: int) -> list[BenchRow]:
    """A start that does not count, which warms the environment, and so many that do."""
    start()
    actors, up, first = zip(*(start() for _ in range(repeats)), strict=True)
    return [
        row("seconds from `duet train` to the end of its first iteration", first, "≤ 60"),
        row("seconds from `duet train` to the start of its members", actors, ""),
        row("seconds from `duet train` until all members are up", up, ""),
    ]
