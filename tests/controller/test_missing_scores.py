"""The limit on scores that are missing by fault of a rater."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.missing_scores import MissingScoreLimit, TooManyMissingScores
from reward.types import MissingScore
from tests.controller.examples import card

GONE = MissingScore("server error", fault="rater")
LATE = MissingScore("timeout", fault="rater")
SHORT = MissingScore("truncated reply")


def cards(*scores):
    return [card(answer=3.0, judge=score) for score in scores]


def test_a_rater_that_fails_too_often_stops_the_run_with_the_reasons():
    limit = MissingScoreLimit(0.5, window=2)
    limit.see(cards(GONE, GONE, LATE, 4.0))
    with pytest.raises(TooManyMissingScores) as stopped:
        limit.see(cards(GONE, 4.0, 4.0, LATE, GONE))
    message = str(stopped.value)
    assert "rater 'judge' failed to give 6 of 9 scores (67%) in the last 2 iterations" in message
    assert "reward.max_missing_rate = 0.5" in message
    assert "most common reasons: server error (4), timeout (2);" in message
    assert "duet train --resume" in message
    assert limit.shares() == {"answer": 0.0, "judge": pytest.approx(6 / 9)}


def test_a_share_at_the_limit_is_borne():
    MissingScoreLimit(0.5, window=1).see(cards(GONE, 4.0))
    MissingScoreLimit(0.3, window=1).see(cards(*[GONE] * 3, *[4.0] * 7))
    with pytest.raises(TooManyMissingScores, match="in the last iteration, more"):
        MissingScoreLimit(0.5, window=1).see(cards(GONE, 4.0, GONE))
    MissingScoreLimit(1.0, window=1).see(cards(GONE, GONE))


def test_a_failure_that_passes_is_outlived():
    limit = MissingScoreLimit(0.5, window=3)
    for scores in [(GONE, GONE), (4.0, 4.0), (4.0, 4.0), (4.0, 4.0), (GONE, GONE), (4.0, GONE)]:
        limit.see(cards(*scores))
    with pytest.raises(TooManyMissingScores):
        limit.see(cards(GONE, 4.0))


def test_replies_that_cannot_be_rated_do_not_count():
    limit = MissingScoreLimit(0.0, window=1)
    limit.see(cards(SHORT, SHORT, SHORT))
    assert limit.shares() == {"answer": 0.0}
    limit.see([])
    assert limit.shares() == {}
    limit = MissingScoreLimit(0.5, window=1)
    with pytest.raises(TooManyMissingScores, match=r"2 of 3 scores"):
        limit.see(cards(SHORT, SHORT, GONE, GONE, 4.0))


SCORE = st.sampled_from([4.0, GONE, LATE, SHORT])


@given(st.lists(st.lists(SCORE, max_size=5), max_size=6), st.floats(0, 1), st.integers(1, 4))
def test_it_stops_when_the_share_over_the_window_is_above_the_limit_and_never_else(iterations, share, window):
    limit = MissingScoreLimit(share, window)
    for number, scores in enumerate(iterations, start=1):
        last = [score for seen in iterations[max(0, number - window) : number] for score in seen if score != SHORT]
        lost = sum(isinstance(score, MissingScore) for score in last)
        if number >= window and last and lost / len(last) > share:
            with pytest.raises(TooManyMissingScores, match=f"{lost} of {len(last)}"):
                limit.see(cards(*scores))
        else:
            limit.see(cards(*scores))
