"""The controller with up to 256 workers, which only take the time they are told to (`bench.stubs`).

The loop, its pools, leases, renewals, records and metrics are the real ones, and members are Ray actors: what is
measured is what the controller spends on so many members and replies. Up to 64 workers are a process each; more of
them share processes (`bench.shared_process`), and 64 are measured both ways, to see that it makes no difference to the
controller. The members share this machine's processors, which they would not on a cluster: wall time is disturbed by
them, processor time is not.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from unittest.mock import patch

import psutil

from bench.controller_profile import CpuUsage, watched
from bench.fixtures import apart, joined, playground
from bench.rows import BenchRow, row
from bench.shared_process import shared
from bench.stubs import LearnerRankStub, RewardServerStub, RolloutWorkerProcess, Script
from configs.schema import Config
from controller.inputs import read_inputs
from controller.loop import TrainingLoop

STAGES = {1: 2, 4: 2, 16: 2, 64: 2}
"""Iterations with so many workers, a process each. The first with each number, which pays for what is new, does not
count."""
SHARED = {64: 2, 256: 4}
"""The same of those that share processes."""
SEATS = 16
"""Of them in a process."""
MEMORY, OTHERS = 80, 2500
"""MiB that a process of workers needs, with what looks after it; and all others together."""
WAVE = 48
"""Members that start at a time: they all want a processor at once."""
SERVERS, PROMPTS, GROUP = 8, 512, 4
LATENCIES = dict(rollout=15.0, reward=2.0, learn=8.0, sync=3.0)
"""Seconds, of a model of seven billion parameters with 256 GPUs that draw and 64 that learn, each at its best: 769
tokens at 20 ms a step; 2,048 rows of 800 tokens at 8 operations a parameter and 400 TFLOP/s a GPU take 4 s, and what
else is in a step as long; 15 GB to each worker at 5 GB/s. So the iteration is rather too short, and the controller's
share too large."""
CHUNKS = 64
"""Of 2 words and 8 codes: a reply of twenty seconds of speech."""


def measure(repeats: int) -> list[BenchRow]:
    """The controller's share of processor time with the most workers, and what an iteration costs it with each number.
    repeats: of the iterations that count with the most workers, and with those that are measured both ways."""
    most, both = max(SHARED), min(SHARED)
    sharing = apart(simulate, SHARED | {both: 1 + repeats, most: 1 + repeats}, SEATS)
    fitting = {size: 1 + repeats if size == both else n for size, n in STAGES.items() if size <= room()}
    alone = apart(simulate, fitting, 1)
    whole = sum(LATENCIES.values())  # what an iteration takes at least; here it takes longer, for all share processors
    rows = [
        row(
            f"controller's processor share, {most} simulated workers", [s / whole for s in cost(sharing[most])], "≤ 0.1"
        )
    ]
    if both in alone:
        ratios = [one / other for one, other in zip(cost(sharing[both]), cost(alone[both]), strict=True)]
        rows.append(row(f"controller, {both} workers, {SEATS} a process / a process each", ratios, ""))
    for seats, simulated in ((1, alone), (SEATS, sharing)):
        for size, spent in simulated.items():
            sharing_said = f", {seats} a process" if seats > 1 else ""
            what = f"controller, {spent[0].replies:,} replies, {size} workers{sharing_said}"
            rows.append(row(f"{what}: processor ms an iteration", [1e3 * seconds for seconds in cost(spent)], ""))
            rows.append(row(f"{what}: ms not waiting", [1e3 * s.own for s in spent], ""))
            rows.append(row(f"{what}: seconds an iteration", [s.wall for s in spent], ""))
    return rows


def cost(spent: Sequence[CpuUsage]) -> list[float]:
    """Seconds of a processor in each iteration."""
    return [s.processor for s in spent]


def setting(directory: Path, prompts: int, iterations: int) -> Config:
    config = playground(
        "run.name=simulated",
        f"run.directory={directory}",
        f"train.num_steps={iterations}",
        "checkpoint.interval=0",
        "validation.recording_interval=0",
        f"rollout.batch_size={prompts}",
        f"rollout.n={GROUP}",
        # Ray starts as many processes at once as it counts processors, so all of them together take few.
        "rollout.num_cpus=0.01",
        f"reward.num_servers={SERVERS}",
        "reward.num_cpus=0.01",
        "learner.num_workers=1",
        "learner.num_cpus=0.01",
    )
    config.data.validation, config.reward.audio_quality_fn = {}, ""
    return config


def build_script(config: Config, latencies: Mapping[str, float]) -> Script:
    vocabulary = read_inputs(config).vocabulary
    word = next(i for i, channel in enumerate(vocabulary.channel_table()) if channel == 0)
    chunk = [word, word, vocabulary.begin_speech, *range(vocabulary.speech_first, vocabulary.speech_first + 8)]
    ids = [*[*chunk, vocabulary.end_speech] * CHUNKS, vocabulary.end_reply]
    raters = [rater.name for rater in config.reward.functions]
    return Script(**latencies, reply_ids=ids, channels=vocabulary.channels(ids).tolist(), raters=raters)


def simulate(
    stages: Mapping[int, int],
    seats: int = 1,
    *,
    prompts: int = PROMPTS,
    latencies: Mapping[str, float] = LATENCIES,
) -> dict[int, list[CpuUsage]]:
    """Iterations by number of workers.

    stages: how many with each number of workers, which grows. seats: workers in a process. Raises MemoryError where
    there is no room for so many.
    """
    if (processes := -(-max(stages) // seats)) > room():
        raise MemoryError(f"{processes} processes need {MEMORY} MiB each, and there is room for {room()}")
    begins = dict(zip(accumulate(stages.values(), initial=1), [*stages, max(stages)], strict=True))
    """Number of workers by the iteration that it begins with; after the last of all, an iteration that never counts."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        config = setting(Path(name), prompts, max(begins))
        build_script(config, latencies).write(Path(name) / "script.json")

        def grow(loop: TrainingLoop, number: int) -> None:
            while loop.rollout.target < begins.get(number, 0):
                loop.scale({"rollout": min(begins[number], loop.rollout.target + WAVE)})
                loop.rollout.start(strict=False)

        stack.enter_context(in_place())
        if seats > 1:
            stack.enter_context(shared(seats))
        stack.enter_context(joined(config, cpus=4))
        spent = watched(config, grow)
    return {size: spent[first : first + stages[size] - 1] for first, size in begins.items() if first < max(begins)}


@contextmanager
def in_place() -> Iterator[None]:
    """Replace the actors started inside this context by stubs."""
    with ExitStack() as stack:
        for place, kind in (
            ("rollout.pool.RolloutWorker", RolloutWorkerProcess),
            ("reward.pool.RewardServer", RewardServerStub),
            ("learner.group.LearnerRank", LearnerRankStub),
        ):
            stack.enter_context(patch(place, kind))
        # A process of Ray has dozens of threads, each of which would keep free memory of its own.
        stack.enter_context(patch.dict(os.environ, MALLOC_ARENA_MAX="1"))
        yield


def room() -> int:
    """Processes that the free memory is enough for: where it is not, Ray ends some of them, and the system others."""
    return int((psutil.virtual_memory().available / 2**20 - OTHERS) // MEMORY)
