"""Totals, advantages, dropped replies, and the resulting rows."""

import numpy as np
import pytest

from configs.routes import PRESETS, ScoreRoute
from configs.schema import ADVANTAGES
from controller.batch import anchor_rows
from data.sampler import EpochSampler, draw_seeds
from observability.summary import paired_errors, summarise
from reward.scoring import (
    ScoredReply,
    ScoringConfig,
    advantages,
    combine_scores,
    group_scores,
    mean_scores,
    missing_reasons,
    score_groups,
)
from reward.types import MissingScore, Scorecard
from speech.families import PLAYGROUND
from speech.types import Demonstration
from speech.vocabulary import Vocabulary
from tests.controller.examples import card, group

ROUTE = ScoreRoute()
ONE = ScoringConfig(total={"a": 1.0})
GONE = MissingScore("judge timed out")


def test_totals_combine_and_missing_stays_missing():
    """Method §7, rule 1."""
    scores = {"a": 5.0, "b": 1.0, "c": GONE}
    assert combine_scores(scores, {"a": 3.0, "b": 1.0}, "sum") == pytest.approx(4.0)
    assert combine_scores(scores, {"a": 3.0, "b": 1.0}, "harmonic") == pytest.approx(4 / (3 / 5 + 1))
    for how in ("sum", "harmonic"):
        assert combine_scores(scores, {"a": 3.0, "c": 1.0}, how) == GONE
        assert combine_scores(scores, {"a": 3.0, "c": 0.0}, how) == pytest.approx(5.0)
    impossible = combine_scores({"a": 5.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, "harmonic")
    assert isinstance(impossible, MissingScore)
    assert impossible.fault == "rater"


def test_advantages_use_the_population_deviation():
    assert advantages([1.0, 3.0]).tolist() == pytest.approx([-1 / 1.0001, 1 / 1.0001])
    assert advantages([4.0, 4.0, 4.0]).tolist() == [0.0, 0.0, 0.0]


def test_advantages_without_deviation_and_against_the_others():
    assert advantages([1.0, 3.0, 5.0], "dr_grpo").tolist() == [-2.0, 0.0, 2.0]
    assert advantages([1.0, 3.0, 5.0], "rloo").tolist() == pytest.approx([1 - 4, 3 - 3, 5 - 2])


def test_a_failed_judge_never_becomes_a_score():
    """Method §7, rule 1: the reply leaves its group's mean, deviation and maximum."""
    judged = score_groups(group(3), [card(a=1.0), card(a=GONE), card(a=5.0)], ONE, [ROUTE])
    assert judged[1].advantages == (None,)
    assert [j.advantages[0] for j in (judged[0], judged[2])] == pytest.approx([-1.0, 1.0], abs=1e-4)
    assert group_scores(judged) == [1.0, 5.0]
    assert mean_scores(judged) == {"a": 3.0, "total": 3.0}
    assert missing_reasons(judged) == {"judge timed out": 1}


def test_one_score_alone_gives_no_gradient():
    """Method §7, rule 1: not even with the mean of the other replies (rloo)."""
    for kind in ADVANTAGES:
        judged = score_groups(group(3), [card(a=5.0), card(a=GONE), card(a=GONE)], ONE, [ROUTE], kind)
        assert all(j.advantages == (None,) for j in judged)


def test_routes_have_advantages_of_their_own():
    """A missing score removes the reply from the routes of that score only."""
    cards = [card(a=1.0, b=5.0), card(a=5.0, b=1.0), card(a=3.0, b=GONE)]
    judged = score_groups(group(3), cards, ONE, [ScoreRoute(score="a"), ScoreRoute(score="b", channel="speech")])
    assert judged[0].advantages == pytest.approx((-1.2247, 1.0), abs=1e-3)
    assert judged[2].advantages == (pytest.approx(0.0), None)


def test_named_combinations_are_scores_like_others():
    scoring = ScoringConfig(total={"a": 1.0}, others={"semantic": {"a": 1.0}, "acoustic": {"b": 1.0, "c": 1.0}})
    cards = [card(a=1.0, b=2.0, c=4.0, format=5.0), card(a=5.0, b=4.0, c=4.0, format=5.0)]
    judged = score_groups(group(2), cards, scoring, PRESETS["alpo"])
    assert judged[0].scores["acoustic"] == pytest.approx(3.0)
    assert judged[0].advantages == pytest.approx((0.0, -1.0, -1.0), abs=1e-3)
    assert scoring.apply(card(a=1.0, total=2.5))["total"] == 2.5, "a recorded total is not computed anew"


def test_demonstrations_never_train_their_prompt(world):
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    reply = np.array([vocabulary.begin_speech, vocabulary.speech_first, vocabulary.end_speech, vocabulary.end_reply])
    [row] = anchor_rows(
        [Demonstration(prompt_id="p", prompt_ids=np.array([1, 2]), reply_ids=reply, text="")], vocabulary
    )
    assert row.anchor_weight == 1.0
    assert row.channels.tolist() == [2, 1, 2, 3]


def test_every_prompt_once_an_epoch_in_an_order_of_the_seed():
    ledger = EpochSampler(10, seed=1, stream=0)
    first, second = ledger.take(4) + ledger.take(6), ledger.take(10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert EpochSampler(10, seed=1, stream=0).take(10) == first
    assert EpochSampler(10, seed=2, stream=0).take(10) != first


def test_seeds_do_not_repeat():
    seeds = [s for iteration in range(20) for s in draw_seeds(0, 0, iteration, 16)]
    assert len(set(seeds)) == len(seeds)
    assert draw_seeds(0, 0, 3, 4) == draw_seeds(0, 0, 3, 4)
    assert set(draw_seeds(0, 2, 3, 16)).isdisjoint(draw_seeds(0, 0, 3, 16))


def judged_cards(*cards: Scorecard) -> list[ScoredReply]:
    return score_groups(group(len(cards)), cards, ScoringConfig(total={"answer": 1.0}), [])


def test_evaluation_counts_what_is_missing_as_not_right():
    before = judged_cards(card(answer=5.0, manner=2.0), card(answer=1.0, manner=GONE), card(answer=GONE, manner=4.0))
    summary = summarise(before, 5.0)
    assert summary["answer_accuracy"] == pytest.approx(1 / 3)
    assert summary["manner"] == pytest.approx(3.0)
    assert (summary["prompts"], summary["missing"]) == (3, 2)
    failed = MissingScore("answer raised TimeoutError", fault="rater")
    assert summarise(judged_cards(card(answer=5.0), card(answer=failed)), 5.0)["answer_accuracy"] == 1.0
    after = judged_cards(*[card(answer=5.0, manner=3.0)] * 3)
    errors = paired_errors(before, after, 5.0)
    assert errors["answer_accuracy"] == pytest.approx(np.std([0, 1, 1], ddof=1) / np.sqrt(3))
    assert errors["manner"] == pytest.approx(np.std([1, -1], ddof=1) / np.sqrt(2))
