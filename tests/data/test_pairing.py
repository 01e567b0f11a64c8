"""Which two replies to a prompt are a pair."""

import numpy as np
import pytest

from data.pairing import Candidate, PairRefusal, choose_pair, decide_pair, pick_best


def none(count: int) -> list[list[float]]:
    return [[] for _ in range(count)]


def test_best_against_worst_when_far_enough_apart():
    assert choose_pair([2.0, 4.0, 1.5, 3.0], none(4), 0.5) == (1, 2)
    assert choose_pair([3.0, 3.5], none(2), 0.5) == (1, 0)
    assert decide_pair([3.0, 3.4], none(2), 0.5) == PairRefusal.SMALL_GAP
    assert choose_pair([float(np.float32(3.7)), float(np.float32(4.2))], none(2), 0.5) == (1, 0)


def test_a_reply_without_a_score_never_takes_part():
    """Method §7, rule 1."""
    assert choose_pair([None, 4.0, float("nan"), 1.0], none(4), 0.5) == (1, 3)
    assert decide_pair([None, 4.0, None], none(3), 0.5) == PairRefusal.TOO_FEW
    assert decide_pair([], [], 0.5) == PairRefusal.TOO_FEW


def test_ties_are_broken_in_order_and_never_by_a_score_that_is_missing():
    # 0 and 1 are best, 2 and 3 worst; the first tie score does not tell 0 from 1, the second does.
    scores = [5.0, 5.0, 1.0, 1.0]
    assert choose_pair(scores, [[4.0, 1.0], [4.0, 2.0], [3.0, 9.0], [2.0, 9.0]], 0.5) == (1, 3)
    assert choose_pair(scores, [[None, 9.0], [1.0, 1.0], [None, 1.0], [5.0, 9.0]], 0.5) == (1, 3)
    assert choose_pair(scores, [[1.0], [1.0], [1.0], [1.0]], 0.5) == (0, 3)


def test_with_no_margin_equals_are_told_apart_by_ties_or_not_at_all():
    assert choose_pair([3.0, 3.0], [[1.0], [2.0]], 0.0) == (1, 0)
    assert decide_pair([3.0, 3.0], [[1.0], [1.0]], 0.0) == PairRefusal.SMALL_GAP


def test_the_better_reply_can_be_given():
    assert choose_pair([5.0, 1.0, 4.0], none(3), 0.5, best=2) == (2, 1)
    assert decide_pair([1.0, 3.0, 2.0], none(3), 0.5, best=2) == (2, 0)
    assert decide_pair([2.0, 3.0, 1.0], none(3), 0.5, best=2) == PairRefusal.SMALL_GAP
    assert decide_pair([2.0, 3.0, None], none(3), 0.5, best=2) == PairRefusal.TOO_FEW


def test_what_nobody_could_mean_is_refused():
    with pytest.raises(ValueError, match="margin is at least 0, not -1"):
        choose_pair([1.0, 2.0], none(2), -1.0)
    with pytest.raises(ValueError, match="2 replies need as many rows"):
        choose_pair([1.0, 2.0], none(1), 0.5)


def test_the_same_tokens_are_no_pair():
    def candidate(ids, score):
        return Candidate(label="", ids=np.array(ids), score=score, scores={})

    assert pick_best([candidate([1, 2], 5.0), candidate([1, 2], 1.0)], [], 0.5) == PairRefusal.IDENTICAL
    assert pick_best([candidate([1, 2], 5.0), candidate([1], 1.0)], [], 0.5) == (0, 1)
