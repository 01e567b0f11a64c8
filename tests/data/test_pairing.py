"""Which two replies to a prompt are a pair."""

import numpy as np
import pytest

from data.pairing import Candidate, Refusal, choose, decide, pick


def none(count: int) -> list[list[float]]:
    return [[] for _ in range(count)]


def test_best_against_worst_when_far_enough_apart():
    assert choose([2.0, 4.0, 1.5, 3.0], none(4), 0.5) == (1, 2)
    assert choose([3.0, 3.5], none(2), 0.5) == (1, 0)
    assert decide([3.0, 3.4], none(2), 0.5) == Refusal.SMALL_GAP
    assert choose([float(np.float32(3.7)), float(np.float32(4.2))], none(2), 0.5) == (1, 0)


def test_a_reply_without_a_score_never_takes_part():
    """Method §7, rule 1."""
    assert choose([None, 4.0, float("nan"), 1.0], none(4), 0.5) == (1, 3)
    assert decide([None, 4.0, None], none(3), 0.5) == Refusal.TOO_FEW
    assert decide([], [], 0.5) == Refusal.TOO_FEW


def test_ties_are_broken_in_order_and_never_by_a_score_that_is_missing():
    # 0 and 1 are best, 2 and 3 worst; the first tie score does not tell 0 from 1, the second does.
    scores = [5.0, 5.0, 1.0, 1.0]
    assert choose(scores, [[4.0, 1.0], [4.0, 2.0], [3.0, 9.0], [2.0, 9.0]], 0.5) == (1, 3)
    assert choose(scores, [[None, 9.0], [1.0, 1.0], [None, 1.0], [5.0, 9.0]], 0.5) == (1, 3)
    assert choose(scores, [[1.0], [1.0], [1.0], [1.0]], 0.5) == (0, 3)


def test_with_no_margin_equals_are_told_apart_by_ties_or_not_at_all():
    assert choose([3.0, 3.0], [[1.0], [2.0]], 0.0) == (1, 0)
    assert decide([3.0, 3.0], [[1.0], [1.0]], 0.0) == Refusal.SMALL_GAP


def test_the_better_reply_can_be_given():
    assert choose([5.0, 1.0, 4.0], none(3), 0.5, best=2) == (2, 1)
    assert decide([1.0, 3.0, 2.0], none(3), 0.5, best=2) == (2, 0)
    assert decide([2.0, 3.0, 1.0], none(3), 0.5, best=2) == Refusal.SMALL_GAP
    assert decide([2.0, 3.0, None], none(3), 0.5, best=2) == Refusal.TOO_FEW


def test_what_nobody_could_mean_is_refused():
    with pytest.raises(ValueError, match="margin is at least 0, not -1"):
        choose([1.0, 2.0], none(2), -1.0)
    with pytest.raises(ValueError, match="2 replies need as many rows"):
        choose([1.0, 2.0], none(1), 0.5)


def test_the_same_tokens_are_no_pair():
    def candidate(ids, score):
        return Candidate(label="", ids=np.array(ids), score=score, scores={})

    assert pick([candidate([1, 2], 5.0), candidate([1, 2], 1.0)], [], 0.5) == Refusal.IDENTICAL
    assert pick([candidate([1, 2], 5.0), candidate([1], 1.0)], [], 0.5) == (0, 1)
