"""An iteration in which replies are drawn while the learner steps, against the longer of the two alone.

One worker, two servers and a learner that take a given time (`bench.stubs`), since the real ones would share this
machine's two cores; the controller, its pools and records are the real ones. Alone, a role takes what it is told to.
"""

import tempfile
from pathlib import Path

from bench.controller_profile import watched
from bench.fixtures import apart, joined
from bench.rows import BenchRow, row
from bench.simulation import build_script, in_place, setting

GOAL = "≤ 1.1"
PROMPTS = 16
LATENCIES = dict(rollout=4.0, reward=0.2, learn=4.0, sync=0.1)
WARM = 2


def measure(repeats: int) -> list[BenchRow]:
    """Iteration time over that of the slowest role, with staleness 1; beside it with more, and without overlap."""
    longest = max(LATENCIES.values())
    found = {
        staleness: [seconds / longest for seconds in apart(_iterations, staleness, repeats)] for staleness in (1, 2, 0)
    }
    return [
        row("overlapped iteration / longest role alone", found[1], GOAL),
        row("overlapped iteration, staleness 2 / longest role alone", found[2], ""),
        row("synchronous iteration / longest role alone", found[0], ""),
    ]


def _iterations(staleness: int, repeats: int) -> list[float]:
    """Seconds of each."""
    with tempfile.TemporaryDirectory() as name:
        config = setting(Path(name), PROMPTS, WARM + repeats + 1)
        config.rollout.max_staleness_steps = staleness
        build_script(config, LATENCIES).write(Path(name) / "script.json")
        with in_place(), joined(config, cpus=4):
            return [spent.wall for spent in watched(config)][WARM:]
