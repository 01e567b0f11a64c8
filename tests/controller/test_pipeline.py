"""Replies on their way from prompts to batches, with fake pools."""

import numpy as np
import pytest

from controller import pipeline as pipeline_module
from controller.pipeline import Pipeline
from reward.types import Scorecard
from rollout.vllm_engine import SamplingConfig
from speech.types import Prompt, Reply
from tests.controller import examples

SAMPLING = SamplingConfig(temperature=1.0, max_tokens=9)


def prompt(name: str) -> Prompt:
    return Prompt(id=name, token_ids=np.array([1], dtype=np.int32), text="", facts={})


def reply(name: str, index: int = 0) -> Reply:
    return examples.reply(index, prompt_id=name)


def card(score: float) -> Scorecard:
    return Scorecard(scores={"answer": score}, details={}, seconds=0.0)


class Pool:
    """Records requests and returns the results that a test sets."""

    def __init__(self) -> None:
        self.orders: list[tuple] = []
        self.results: list[tuple] = []

    def order(self, *what) -> int:
        self.orders.append(what)
        return len(self.orders) - 1

    def replies(self) -> list[tuple]:
        results, self.results = self.results, []
        return results

    def abandon(self) -> None:
        self.results = []

    submit, collect, abort_all = order, replies, abandon


@pytest.fixture
def pools():
    return Pool(), Pool()


def test_each_reply_is_scored_once_finished_and_a_batch_once_all_are(pools):
    rollout, reward = pools
    pipeline = Pipeline(rollout, reward, [])
    first = pipeline.submit([prompt("p"), prompt("q")], [5, 6], 2, SAMPLING)
    second = pipeline.submit([prompt("r")], [7], 1, SAMPLING)
    assert [(p.id, size, seed) for p, size, _, seed in rollout.orders] == [("p", 2, 5), ("q", 2, 6), ("r", 1, 7)]
    rollout.results = [(1, reply("q", index=1)), (2, reply("r"))]
    pipeline.route()
    assert [(p.id, r.index) for p, r in reward.orders] == [("q", 1), ("r", 0)]
    reward.results = [(1, card(3.0))]
    pipeline.route()
    assert (second.generated, second.scored, first.generated) == (True, True, False)
    rollout.results = [(0, reply("p", index=1)), (0, reply("p", index=0)), (1, reply("q", index=0))]
    pipeline.route()
    assert (first.generated, first.scored) == (True, False)
    reward.results = [(4, card(1.0)), (0, card(2.0)), (3, card(4.0)), (2, card(5.0))]
    pipeline.route()
    assert first.scored
    assert [[r.index for r in group.replies] for group in first.groups()] == [[0, 1], [0, 1]]
    assert [[c.scores["answer"] for c in cards] for cards in first.scorecards()] == [[4.0, 5.0], [1.0, 2.0]]


def test_run_until_stops_when_done(pools, monkeypatch):
    rollout, reward = pools
    pipeline = Pipeline(rollout, reward, [])
    batch = pipeline.submit([prompt("p")], [0], 1, SAMPLING)
    story = iter([lambda: rollout.results.append((0, reply("p"))), lambda: reward.results.append((0, card(1.0)))])
    monkeypatch.setattr(pipeline_module, "poll_once", lambda pools, extra: next(story)())
    pipeline.run_until(lambda: batch.scored)
    assert batch.scored
    pipeline.run_until(lambda: True)  # no poll is left


def test_aborted_batches_get_no_replies(pools):
    rollout, reward = pools
    pipeline = Pipeline(rollout, reward, [])
    batch = pipeline.submit([prompt("p")], [0], 1, SAMPLING)
    rollout.results = [(0, reply("p"))]
    pipeline.abort_all()
    pipeline.route()
    assert (batch.generated, reward.orders) == (False, [])
