"""The controller with up to 256 workers, which only take the time they are told to (`bench.stubs`).

The loop, its pools, leases, renewals, records and metrics are the real ones, and each member is a Ray actor in a
process of its own: what is measured is what the controller spends on so many members and replies. The members share
this machine's processors, which they would not on a cluster: wall time is disturbed by them, processor time is not.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import psutil

from bench.rows import Row, row
from bench.setting import joined, playground
from bench.stubs import Rank, Script, Server, Worker
from bench.watching import Spent, watched
from controller.config import Config
from controller.inputs import read_inputs
from controller.loop import Loop

STAGES = {1: 2, 4: 2, 16: 2, 64: 2, 128: 2, 256: 4}
"""Iterations with so many workers. The first with each number, which pays for what is new, does not count."""
MEMORY, OTHERS = 80, 2500
"""MiB that the process of a worker needs, with what looks after it; and all others together."""
WAVE = 48
"""Members that start at a time: each is a process, and they all want a processor at once."""
SERVERS, PROMPTS, GROUP = 8, 512, 4
LATENCIES = dict(rollout=15.0, reward=2.0, learn=8.0, sync=3.0)
"""Seconds, of a model of seven billion parameters with 256 GPUs that draw and 64 that learn, each at its best: 769
tokens at 20 ms a step; 2,048 rows of 800 tokens at 8 operations a parameter and 400 TFLOP/s a GPU take 4 s, and what
else is in a step as long; 15 GB to each worker at 5 GB/s. So the iteration is rather too short, and the controller's
share too large."""
CHUNKS = 64
"""Of 2 words and 8 codes: a reply of twenty seconds of speech."""


def measure(repeats: int) -> list[Row]:
    """The controller's share of processor time with the most workers that there is memory for, and what an iteration
    costs it with each number. repeats: of the iterations that count with the most workers."""
    fitting = {size: iterations for size, iterations in STAGES.items() if size <= room()}
    simulated, memory = simulate(fitting | {max(fitting): 1 + repeats})
    most = max(simulated)
    shares = [s.processor / s.wall for s in simulated[most]]
    rows = [row(f"controller's own share, {most} simulated workers", shares, "≤ 0.1")]
    for size, spent in simulated.items():
        what = f"controller, {spent[0].replies:,} replies, {size} workers"
        rows.append(row(f"{what}: processor ms an iteration", [1e3 * s.processor for s in spent], ""))
        rows.append(row(f"{what}: ms not waiting", [1e3 * s.own for s in spent], ""))
    return [*rows, row("MiB of a simulated worker's process", [memory], "")]


def setting(directory: Path, prompts: int, iterations: int) -> Config:
    config = playground(
        "run.name=simulated",
        f"run.directory={directory}",
        f"run.iterations={iterations}",
        "run.checkpoint_every=0",
        "evaluation.listen_every=0",
        f"rollout.prompts={prompts}",
        f"rollout.group_size={GROUP}",
        # Ray starts as many processes at once as it counts processors, so all of them together take few.
        "rollout.cpus=0.01",
        f"reward.servers={SERVERS}",
        "reward.cpus=0.01",
        "learner.ranks=1",
        "learner.cpus=0.01",
    )
    config.data.held_out, config.reward.signal = {}, ""
    return config


def script(config: Config, latencies: Mapping[str, float]) -> Script:
    vocabulary = read_inputs(config).vocabulary
    word = next(i for i, channel in enumerate(vocabulary.channel_table()) if channel == 0)
    chunk = [word, word, vocabulary.begin_speech, *range(vocabulary.speech_first, vocabulary.speech_first + 8)]
    ids = [*[*chunk, vocabulary.end_speech] * CHUNKS, vocabulary.end_reply]
    raters = [rater.name for rater in config.reward.raters]
    return Script(**latencies, reply_ids=ids, channels=vocabulary.channels(ids).tolist(), raters=raters)


def simulate(
    stages: Mapping[int, int] = STAGES, *, prompts: int = PROMPTS, latencies: Mapping[str, float] = LATENCIES
) -> tuple[dict[int, list[Spent]], float]:
    """Iterations by number of workers, and memory of a worker's process at the end, MiB (PSS).

    stages: iterations by number of workers, which grows. Raises MemoryError where there is no room for so many.
    """
    if max(stages) > room():
        raise MemoryError(f"{max(stages)} workers need {MEMORY} MiB each, and there is room for {room()}")
    begins = dict(zip(accumulate(stages.values(), initial=1), [*stages, max(stages)], strict=True))
    """Number of workers by the iteration that it begins with; after the last of all, an iteration that never counts."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        config = setting(Path(name), prompts, max(begins))
        script(config, latencies).write(Path(name) / "script.json")
        memory = 0.0

        def grow(loop: Loop, number: int) -> None:
            nonlocal memory
            while loop.rollout.target < begins.get(number, 0):
                loop.scale({"rollout": min(begins[number], loop.rollout.target + WAVE)})
                loop.rollout.start(strict=False)
            if number == max(begins):
                memory = fmean(_memory("Worker"))

        stack.enter_context(in_place())
        stack.enter_context(joined(config, cpus=4))
        spent = watched(config, grow)
    return {
        size: spent[first : first + stages[size] - 1] for first, size in begins.items() if first < max(begins)
    }, memory


@contextmanager
def in_place() -> Iterator[None]:
    """Stubs in the place of the members that are started meanwhile."""
    with ExitStack() as stack:
        for place, kind in (
            ("rollout.pool.RolloutWorker", Worker),
            ("reward.pool.RewardServer", Server),
            ("learner.group.LearnerRank", Rank),
        ):
            stack.enter_context(patch(place, kind))
        # A process of Ray has dozens of threads, each of which would keep free memory of its own.
        stack.enter_context(patch.dict(os.environ, MALLOC_ARENA_MAX="1"))
        yield


def room() -> int:
    """Workers that the free memory is enough for: where it is not, Ray ends some of them, and the system others."""
    return int((psutil.virtual_memory().available / 2**20 - OTHERS) // MEMORY)


def _memory(kind: str) -> list[float]:
    """MiB of each process of a kind of member below this one; shared pages count in part."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{kind}" in " ".join(process.cmdline()):
                found.append(process.memory_full_info().pss / 2**20)
        except psutil.Error:
            continue
    return found
