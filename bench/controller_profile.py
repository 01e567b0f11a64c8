"""Runs the real controller in this process and tells, iteration by iteration, what it spent itself.

Its own time is what is left of an iteration, from its start to the start of the next, records and requests included,
without the time in which it waited for members (`ray.wait`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import ray

from configs.schema import Config
from controller.actor import Controller
from controller.loop import IterationResult, TrainingLoop


@dataclass(frozen=True, kw_only=True)
class CpuUsage:
    """An iteration, seconds."""

    workers: int
    replies: int
    tokens: int
    """Of the replies."""
    wall: float
    own: float
    """Of the wall time: not waiting for members."""
    processor: float
    """Of all threads of the controller's process."""

    @property
    def share(self) -> float:
        return self.own / self.wall


class PhaseClock:
    """Wall time that the controller's thread did not spend waiting, and processor time of its process."""

    def __init__(self) -> None:
        self.waited = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what passes in `ray.wait`, of which only the controller's thread makes use."""

        def counted(wait: Callable) -> Callable:
            def timed(*arguments, **named):
                begun = time.perf_counter()
                try:
                    return wait(*arguments, **named)
                finally:
                    self.waited += time.perf_counter() - begun

            return timed

        with patch.object(ray, "wait", counted(ray.wait)):
            yield

    def read(self) -> tuple[float, float, float]:
        return time.perf_counter(), self.waited, time.process_time()


def watched(config: Config, before: Callable[[TrainingLoop, int], None] = lambda loop, number: None) -> list[CpuUsage]:
    """Runs a job to its end, in the Ray cluster that this process has joined. An entry for each iteration but the
    last, which ends in the evaluation. before: called with the loop and the number of each iteration; what it takes
    belongs to none."""
    clock, marks = PhaseClock(), []
    train_step = TrainingLoop.train_step

    def timed(loop: TrainingLoop, number: int) -> IterationResult:
        ended = clock.read()
        before(loop, number)
        begun = clock.read()
        done = train_step(loop, number)
        it = done.iteration
        marks.append((ended, begun, loop.rollout.target, it.replies, it.tokens_text + it.tokens_speech))
        return done

    with clock.counting(), patch.object(TrainingLoop, "train_step", timed):
        Controller(config, Path(config.run.directory) / config.run.name).run()
    spent = []
    for (_, begun, workers, replies, tokens), (ended, *_) in pairwise(marks):
        wall, waited, processor = (b - a for a, b in zip(begun, ended, strict=True))
        spent.append(
            CpuUsage(workers=workers, replies=replies, tokens=tokens, wall=wall, own=wall - waited, processor=processor)
        )
    return spent
