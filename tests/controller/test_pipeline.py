"""Replies on their way from prompts to batches, with stand-ins for the pools."""

import numpy as np
import pytest

from controller import pipeline as flow_module
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
    """Takes orders, and gives out what a test puts there."""

    def __init__(self) -> None:
        self.orders: list[tuple] = []
        self.there: list[tuple] = []

    def order(self, *what) -> int:
        self.orders.append(what)
        return len(self.orders) - 1

    def replies(self) -> list[tuple]:
        there, self.there = self.there, []
        return there

    def abandon(self) -> None:
        self.there = []

    submit, collect, abort_all = order, replies, abandon


@pytest.fixture
def pools():
    return Pool(), Pool()


def test_a_reply_is_rated_as_soon_as_it_is_there_and_a_batch_is_whole_when_all_are(pools):
    rollout, reward = pools
    flow = Pipeline(rollout, reward, [])
    first = flow.order([prompt("p"), prompt("q")], [5, 6], 2, SAMPLING)
    second = flow.order([prompt("r")], [7], 1, SAMPLING)
    assert [(p.id, size, seed) for p, size, _, seed in rollout.orders] == [("p", 2, 5), ("q", 2, 6), ("r", 1, 7)]
    rollout.there = [(1, reply("q", index=1)), (2, reply("r"))]
    flow.move()
    assert [(p.id, r.index) for p, r in reward.orders] == [("q", 1), ("r", 0)]
    reward.there = [(1, card(3.0))]
    flow.move()
    assert (second.drawn, second.whole, first.drawn) == (True, True, False)
    rollout.there = [(0, reply("p", index=1)), (0, reply("p", index=0)), (1, reply("q", index=0))]
    flow.move()
    assert (first.drawn, first.whole) == (True, False)
    reward.there = [(4, card(1.0)), (0, card(2.0)), (3, card(4.0)), (2, card(5.0))]
    flow.move()
    assert first.whole
    assert [[r.index for r in group.replies] for group in first.groups()] == [[0, 1], [0, 1]]
    assert [[c.scores["answer"] for c in cards] for cards in first.scorecards()] == [[4.0, 5.0], [1.0, 2.0]]


def test_it_waits_for_what_it_is_to_wait_for_and_no_longer(pools, monkeypatch):
    rollout, reward = pools
    flow = Pipeline(rollout, reward, [])
    batch = flow.order([prompt("p")], [0], 1, SAMPLING)
    story = iter([lambda: rollout.there.append((0, reply("p"))), lambda: reward.there.append((0, card(1.0)))])
    monkeypatch.setattr(flow_module, "poll_once", lambda company, others: next(story)())
    flow.pump(lambda: batch.whole)
    assert batch.whole
    flow.pump(lambda: True)  # no turn is left to take


def test_what_is_abandoned_is_forgotten(pools):
    rollout, reward = pools
    flow = Pipeline(rollout, reward, [])
    batch = flow.order([prompt("p")], [0], 1, SAMPLING)
    rollout.there = [(0, reply("p"))]
    flow.abandon()
    flow.move()
    assert (batch.drawn, reward.orders) == (False, [])
