"""From judged replies to rows and pairs: what trains, how much it counts, and what does not train at all."""

import numpy as np
import pytest

from configs.routes import ScoreRoute
from controller.batch import DPOBatchBuilder, GRPOBatchBuilder, group_of_pair
from data.records import read_demonstrations, read_prompts
from learner.micro_batches import TrainingPair as PairItem
from reward.scoring import ScoringConfig, score_groups
from reward.types import MissingScore
from speech.families import PLAYGROUND
from speech.grammar import token_kinds
from speech.types import Demonstration, PreferencePair, Prompt
from speech.vocabulary import Vocabulary
from tests.controller.examples import card, group

TEXT = (ScoreRoute(),)
ONE = ScoringConfig(total={"a": 1.0})
GONE = MissingScore("judge timed out")
SPEECH_ONLY = {"ids": (5, 6, 5), "channels": (2, 1, 2)}


def policy_gradient(*routes: ScoreRoute, average: str = "seq-mean-token-mean") -> GRPOBatchBuilder:
    return GRPOBatchBuilder(
        routes=routes or (ScoreRoute(),), boundary="speech", average=average, constant=10, structure=None
    )


def rated(found, *scores, routes=TEXT, scoring=ONE):
    return score_groups(
        found, [card(a=score) if not isinstance(score, dict) else card(**score) for score in scores], scoring, routes
    )


def test_rows_weigh_groups_alike_whatever_was_dropped():
    """Method §7, rule 1: a reply without a score is no row and in no mean."""
    groups = [group(2), group(4), group(2)]
    judged = [rated(groups[0], 1.0, 5.0), rated(groups[1], 1.0, 5.0, 3.0, GONE), rated(groups[2], GONE, 5.0)]
    batch = policy_gradient().batch(groups, judged, {}, [1.0] * 3)
    assert [row.weights for row in batch.items] == [(pytest.approx(1 / 8),)] * 2 + [(pytest.approx(1 / 12),)] * 3
    assert batch.uses == [["advantage"] * 2, ["advantage"] * 3 + [None], [None, None]]


def test_a_group_without_text_gives_no_preference_gradient():
    """Method §7, rule 4: the released code trains speech by reinforcement instead."""
    groups = [group(2, **SPEECH_ONLY), group(2)]
    judged = [rated(g, 1.0, 5.0) for g in groups]
    batch = policy_gradient().batch(groups, judged, {}, [1.0, 1.0])
    assert batch.uses == [[None, None], ["advantage", "advantage"]]
    assert [row.weights for row in batch.items] == [(pytest.approx(1 / 4),)] * 2, "the other group counts alone"
    assert [row.kl_weights[1] for row in batch.items] == [0.0, 0.0]


def test_every_route_has_its_own_normaliser_and_its_own_missing_scores():
    routes = (ScoreRoute(score="a"), ScoreRoute(score="b", channel="speech"))
    found = group(3, ids=(7, 5, 6, 6, 5, 3), channels=(0, 2, 1, 1, 2, 3))
    judged = rated(found, {"a": 1.0, "b": 5.0}, {"a": 5.0, "b": 1.0}, {"a": 3.0, "b": GONE}, routes=routes)
    rows = policy_gradient(*routes).batch([found], [judged], {}, [1.0]).items
    assert [row.weights for row in rows] == [
        (pytest.approx(1 / 6), pytest.approx(1 / 8)),
        (pytest.approx(1 / 6), pytest.approx(1 / 8)),
        (pytest.approx(1 / 6), 0.0),
    ]
    assert rows[0].kl_weights == (pytest.approx(1 / 6), pytest.approx(1 / 12))


def test_a_group_counts_by_its_own_lambda():
    groups = [group(2), group(2)]
    judged = [rated(g, 1.0, 5.0) for g in groups]
    rows = policy_gradient().batch(groups, judged, {}, [1.6, 0.4]).items
    assert [row.weights[0] for row in rows] == pytest.approx([0.2, 0.2, 0.05, 0.05])


def test_no_routes_train_nothing():
    found = group(2)
    batch = GRPOBatchBuilder(
        routes=(), boundary="speech", average="seq-mean-token-mean", constant=1, structure=None
    ).batch([found], [rated(found, 1.0, 5.0, routes=())], {}, [1.0])
    assert batch.items == []
    assert batch.uses == [[None, None]]


# ---- pairs


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture(scope="module")
def demonstrations(world, vocabulary) -> list[Demonstration]:
    return read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:4]


def paired(vocabulary, **changes) -> DPOBatchBuilder:
    settings = {"score": "total", "ties": ("b",), "margin": 0.5, "structure": None, "vocabulary": vocabulary}
    return DPOBatchBuilder(**(settings | changes))


def different(count: int, prompt: str = "p"):
    """Replies that differ in a token."""
    found = group(count, prompt)
    for index, reply in enumerate(found.replies):
        reply.token_ids[0] = 10 + index
    return found


def test_the_best_is_paired_with_the_worst_where_they_are_far_enough_apart(vocabulary):
    groups = [different(4), different(2), different(3)]
    judged = [
        rated(groups[0], {"a": 3.0, "b": 1.0}, {"a": 5.0, "b": 1.0}, {"a": 5.0, "b": 2.0}, {"a": GONE, "b": 5.0}),
        rated(groups[1], {"a": 3.0, "b": 1.0}, {"a": 3.4, "b": 1.0}),
        rated(groups[2], {"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}, {"a": 4.0, "b": 1.0}),
    ]
    batch = paired(vocabulary).batch(groups, judged, {}, [1.0] * 3)
    assert batch.uses == [["rejected", None, "chosen", None], [None, None], ["rejected", None, "chosen"]]
    assert [pair.weight for pair in batch.items] == [0.5, 0.5]
    assert batch.items[0].chosen.reply_ids.tolist() == [12, 3]
    assert batch.items[0].rejected.rollout_logprobs is not None, (
        "it was sampled: the engines' difference is measured on it"
    )


def test_equal_tokens_are_no_pair(vocabulary):
    found = group(2)
    judged = rated(found, {"a": 1.0, "b": 1.0}, {"a": 5.0, "b": 1.0})
    assert paired(vocabulary).batch([found], [judged], {}, [1.0]).items == []


def test_a_demonstration_is_rated_before_a_sample_is_rejected_for_it(world, vocabulary, demonstrations):
    """Method §5: online, the rejected reply is judged, which the released code leaves out."""
    structure = (PLAYGROUND.interleave, token_kinds(vocabulary))
    prompts = [p for p in read_prompts(world / "data/train.parquet", vocabulary) if p.id == demonstrations[0].prompt_id]
    preference = paired(
        vocabulary, ties=(), structure=structure, demonstrations={d.prompt_id: d for d in demonstrations}
    )
    stranger = Prompt(id="stranger", token_ids=np.array([1], dtype=np.int32), text="", facts={})
    [example] = preference.examples([*prompts, stranger])
    assert example.replies[0].defect is None
    assert example.replies[0].token_ids.tolist() == demonstrations[0].reply_ids.tolist()
    own = example.replies[0].token_ids
    found = group(
        2, prompts[0].id, ids=tuple(demonstrations[1].reply_ids), channels=(0,) * len(demonstrations[1].reply_ids)
    )
    judged = rated(found, 4.0, 1.0)
    for score, uses, pairs in ((5.0, [None, "rejected"], 1), (1.2, [None, None], 0), (GONE, [None, None], 0)):
        examples = {prompts[0].id: rated(example, score)[0]}
        batch = preference.batch([found], [judged], examples, [1.0])
        assert batch.uses == [uses]
        assert len(batch.items) == pairs
        if pairs:
            [pair] = batch.items
            assert isinstance(pair, PairItem)
            assert pair.chosen.reply_ids.tolist() == own.tolist()
            assert pair.chosen.rollout_logprobs is None
            assert pair.chosen.allowed is not None


def test_pairs_from_a_file_keep_their_order_and_their_scores(vocabulary, demonstrations):
    """Method §7, rule 1 among others: a score that the file lacks is missing."""
    chosen, rejected = demonstrations[0], demonstrations[1]
    pair = PreferencePair(
        prompt_id="p",
        prompt_ids=chosen.prompt_ids,
        chosen_ids=chosen.reply_ids,
        rejected_ids=rejected.reply_ids,
        chosen_score=4.0,
        rejected_score=1.0,
        scores_chosen={"b": 4.0, "total": 2.0},
        scores_rejected={"b": 1.0},
        origin="",
    )
    found, cards = group_of_pair(pair, vocabulary)
    judged = score_groups(found, cards, ONE, [ScoreRoute()])
    assert judged[0].total == 2.0
    assert isinstance(judged[1].total, MissingScore), "the score that made the pair is not taken for the total"
    assert judged[0].number("b") == 4.0
    batch = paired(vocabulary, recorded=True).batch([found], [judged], {}, [1.0])
    assert batch.uses == [["chosen", "rejected"]]
    assert batch.items[0].rejected.reply_ids.tolist() == rejected.reply_ids.tolist()
    assert batch.items[0].rejected.rollout_logprobs is None
