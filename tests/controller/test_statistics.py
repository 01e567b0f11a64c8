"""Totals, advantages, what is dropped, and the rows that come of it."""

import numpy as np
import pytest

from controller.batch import anchor_rows, preference_rows
from controller.evaluation import paired_errors, summarise
from controller.ledger import Ledger, draw_seeds
from controller.statistics import (
    RouteSettings,
    advantages,
    group_scores,
    judge,
    mean_scores,
    missing_reasons,
    total_score,
)
from reward.rater import Missing, Scorecard
from speech.families import PLAYGROUND
from speech.records import Demonstration, Finish, Group, Prompt, Reply
from speech.vocabulary import Vocabulary

ROUTE = RouteSettings(score="total", channel="text", weight=1.0)
GONE = Missing("judge timed out")


def card(**scores) -> Scorecard:
    return Scorecard(scores=scores, details={}, seconds=1.0)


def group(count: int) -> Group:
    prompt = Prompt(id="p", token_ids=np.array([1, 2], dtype=np.int32), text="", facts={})
    replies = [
        Reply(
            prompt_id="p",
            index=index,
            token_ids=np.array([7, 3], dtype=np.int32),
            channels=np.array([0, 0], dtype=np.int8),
            logps=np.array([-1.0, -0.5], dtype=np.float32),
            weight_version=0,
            finish=Finish.STOP,
            defect=None,
        )
        for index in range(count)
    ]
    return Group(prompt=prompt, replies=replies)


def test_total_is_a_weighted_mean_and_missing_stays_missing():
    assert total_score(card(a=5.0, b=1.0), {"a": 3.0, "b": 1.0}) == pytest.approx(4.0)
    assert total_score(card(a=5.0, b=GONE), {"a": 3.0, "b": 1.0}) == GONE
    assert total_score(card(a=5.0, b=GONE), {"a": 3.0, "b": 0.0}) == pytest.approx(5.0)


def test_advantages_use_the_population_deviation():
    assert advantages([1.0, 3.0]).tolist() == pytest.approx([-1 / 1.0001, 1 / 1.0001])
    assert advantages([4.0, 4.0, 4.0]).tolist() == [0.0, 0.0, 0.0]


def test_a_failed_judge_never_becomes_a_score():
    """Method §7, rule 1: the reply leaves its group's mean, deviation and maximum."""
    cards = [card(a=1.0), card(a=GONE), card(a=5.0)]
    judged = judge(group(3), cards, {"a": 1.0}, [ROUTE])
    assert judged[1].advantages is None
    assert [j.advantages[0] for j in (judged[0], judged[2])] == pytest.approx([-1.0, 1.0], abs=1e-4)
    assert group_scores(judged) == [1.0, 5.0]
    assert mean_scores(cards) == {"a": 3.0}
    assert missing_reasons(cards) == {"judge timed out": 1}


def test_one_score_alone_gives_no_gradient():
    judged = judge(group(3), [card(a=5.0), card(a=GONE), card(a=GONE)], {"a": 1.0}, [ROUTE])
    assert all(j.advantages is None for j in judged)
    assert preference_rows([group(3)], [judged], None) == []


def test_routes_have_advantages_of_their_own():
    cards = [card(a=1.0, b=5.0), card(a=5.0, b=1.0)]
    routes = [
        RouteSettings(score="a", channel="text", weight=1.0),
        RouteSettings(score="b", channel="speech", weight=1.0),
    ]
    judged = judge(group(2), cards, {"a": 1.0}, routes)
    assert judged[0].advantages == pytest.approx((-1.0, 1.0), abs=1e-4)


def test_rows_weigh_groups_alike_whatever_was_dropped():
    full = judge(group(2), [card(a=1.0), card(a=5.0)], {"a": 1.0}, [ROUTE])
    partial = judge(group(4), [card(a=1.0), card(a=5.0), card(a=3.0), card(a=GONE)], {"a": 1.0}, [ROUTE])
    none = judge(group(2), [card(a=GONE), card(a=5.0)], {"a": 1.0}, [ROUTE])
    rows = preference_rows([group(2), group(4), group(2)], [full, partial, none], None)
    assert [row.weight for row in rows] == pytest.approx([1 / 4] * 2 + [1 / 6] * 3)


def test_demonstrations_never_train_their_prompt(world):
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    reply = np.array([vocabulary.begin_speech, vocabulary.speech_first, vocabulary.end_speech, vocabulary.end_reply])
    row = anchor_rows(
        [Demonstration(prompt_id="p", prompt_ids=np.array([1, 2]), reply_ids=reply, text="")], vocabulary
    )[0]
    assert row.is_anchor
    assert row.channels.tolist() == [2, 1, 2, 0]


def test_every_prompt_once_an_epoch_in_an_order_of_the_seed():
    ledger = Ledger(10, seed=1, stream=0)
    first, second = ledger.take(4) + ledger.take(6), ledger.take(10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert Ledger(10, seed=1, stream=0).take(10) == first
    assert Ledger(10, seed=2, stream=0).take(10) != first


def test_seeds_do_not_repeat():
    seeds = [s for iteration in range(20) for s in draw_seeds(0, 0, iteration, 16)]
    assert len(set(seeds)) == len(seeds)
    assert draw_seeds(0, 0, 3, 4) == draw_seeds(0, 0, 3, 4)
    assert set(draw_seeds(0, 2, 3, 16)).isdisjoint(draw_seeds(0, 0, 3, 16))


def test_evaluation_counts_what_is_missing_as_not_right():
    before = [card(answer=5.0, manner=2.0), card(answer=1.0, manner=GONE), card(answer=GONE, manner=4.0)]
    summary = summarise(before, 5.0)
    assert summary["answer_accuracy"] == pytest.approx(1 / 3)
    assert summary["answer"] == pytest.approx(3.0)
    assert summary["manner"] == pytest.approx(3.0)
    assert (summary["prompts"], summary["missing"]) == (3, 2)
    failed = Missing("answer raised TimeoutError", fault="rater")
    assert summarise([card(answer=5.0), card(answer=failed)], 5.0)["answer_accuracy"] == 1.0
    after = [card(answer=5.0, manner=3.0), card(answer=5.0, manner=3.0), card(answer=5.0, manner=3.0)]
    errors = paired_errors(before, after, 5.0)
    assert errors["answer_accuracy"] == pytest.approx(np.std([0, 1, 1], ddof=1) / np.sqrt(3))
    assert errors["manner"] == pytest.approx(np.std([1, -1], ddof=1) / np.sqrt(2))
