"""Members that only take the time they are told to: what 256 workers, their servers and learner are to the controller.

They answer with what the real ones would, replies and scorecards of the usual size, so that the controller has its
usual work. They import next to nothing, so that many of them fit on one machine. `script` says what they do.
"""

import json
import os
import random
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cluster.monitored_actor import MonitoredActor
from weight_sync.update import WeightUpdate

SCRIPT = "DUET_BENCH_SCRIPT"
"""Environment variable: the file that `Script.write` made."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the members of a simulation do. Latencies in seconds."""

    rollout: float
    """Until the last group is there of those that a worker is given together; they come evenly."""
    reward: float
    learn: float
    sync: float
    reply_ids: list[int]
    """Every reply."""
    channels: list[int]
    raters: list[str]

    def write(self, path: Path) -> None:
        """For all members that are started from now on."""
        path.write_text(json.dumps(vars(self)))
        os.environ[SCRIPT] = str(path)


@cache
def script() -> Script:
    return Script(**json.loads(Path(os.environ[SCRIPT]).read_text()))


class RolloutWorkerStub:
    """In the place of `rollout.worker.RolloutWorker`."""

    def __init__(self, name: str) -> None:
        self._name, self._version = name, 0
        self._under: list[tuple[Any, float]] = []
        """Orders, and when their replies are there, the next first."""

    def warm_up(self, *_: Any) -> str:
        return self._name

    def run_for(self, requests: list, duration_s: float) -> Any:
        from rollout.worker import RolloutResult

        now = time.monotonic()
        end = now + duration_s
        each = script().rollout / max(1, len(requests))
        self._under += [(order, now + each * place) for place, order in enumerate(requests, start=1)]
        self._under.sort(key=lambda one: one[1])
        if self._under:
            time.sleep(max(0.0, min(end, self._under[0][1]) - now))
        done = [order for order, due in self._under if due <= time.monotonic()]
        self._under = self._under[len(done) :]
        replies = [(order.number, self._reply(order, index)) for order in done for index in range(order.group_size)]
        return RolloutResult(replies=replies, rejected=[])

    def _reply(self, order: Any, index: int) -> Any:
        from speech.types import Finish, Reply

        ids, channels = np.array(script().reply_ids, np.int32), np.array(script().channels, np.int8)
        return Reply(
            prompt_id=order.prompt.id,
            index=index,
            token_ids=ids,
            channels=channels,
            logps=np.full(len(ids), -1.0, np.float32),
            weight_version=self._version,
            finish=Finish.STOP,
            defect=None,
            worker=self._name,
            seed=order.seed,
        )

    def abort_all(self) -> None:
        self._under.clear()

    def update(self, parcel: WeightUpdate, *_: Any) -> Any:
        from rollout.worker import SyncReport

        time.sleep(script().sync)
        self._version = parcel.version
        return SyncReport(version=parcel.version, logprob_diff=0.0, seconds=script().sync)


class RolloutWorkerProcess(RolloutWorkerStub, MonitoredActor):
    """One that is an actor by itself; `bench.shared_process` has several in one process."""

    def __init__(self, name: str, *_: Any) -> None:
        MonitoredActor.__init__(self)
        RolloutWorkerStub.__init__(self, name)


class RewardServerStub(MonitoredActor):
    """In the place of `reward.server.RewardServer`."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self._draw = random.Random(os.getpid())

    def versions(self) -> dict[str, str]:
        return dict.fromkeys([*script().raters, "codec"], "stub-1")

    def score(self, groups: list) -> list:
        time.sleep(script().reward)
        return [[self._card() for _ in group.replies] for group in groups]

    def _card(self) -> Any:
        from reward.types import Scorecard

        measures = {"pitch_semitones": 12.0, "words_per_second": 2.5, "silence": 0.1, "word_error": 0.0}
        return Scorecard(
            scores={rater: self._draw.choice((1.0, 5.0)) for rater in script().raters},
            details={"text": "it is seven", "heard": "it is seven"},
            seconds=16.0,
            measures=measures,
        )

    def counters(self) -> tuple[float, dict, dict]:
        return 0.0, {}, {}

    def cache_entries(self) -> Any:
        from reward.remote.cache import ANSWERS

        return ANSWERS.empty_table()


class LearnerRankStub(MonitoredActor):
    """In the place of `learner.rank.LearnerRank`."""

    def __init__(self, rank: int, *_: Any) -> None:
        super().__init__()
        self._rank = rank
        self._folder = Path(tempfile.mkdtemp(prefix="duet-bench-"))  # which the group removes

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", 0

    def connect(self, host: str, port: int) -> int:
        return 1

    def step(self, items: list, micro_batches: int, mix: float) -> Any:
        from learner.step_metrics import StepMetrics, StepReport

        time.sleep(script().learn)
        tally = StepMetrics()
        for name in ("loss_preference", "loss_anchor"):
            tally.add(name, 1.0)
        return StepReport(metrics=tally, gradient_norm=1.0, learning_rate=1e-4, skipped=False, finite=True)

    def publish(self, version: int, probe: list[np.ndarray]) -> Any:
        if self._rank:
            return None
        parcel = WeightUpdate(version=version, size=1, whole=True, path=self._folder / "weights")
        return parcel, [np.zeros(len(ids) - 1, np.float32) for ids in probe]

    def save(self, directory: Path) -> str:
        return "stub"

    def close(self) -> None:
        self._folder.rmdir()
