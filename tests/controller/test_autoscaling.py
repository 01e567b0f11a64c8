"""Sizes of pools: asked for within bounds, or following the learner's wait without swinging."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from controller.autoscaling import AutoScaler, target_sizes
from controller.requests import parse_pool_sizes

LARGEST = {"rollout": 16, "reward": 16}


def test_sizes_are_read_from_a_request():
    assert target_sizes({"kind": "scale", "value": {"rollout": 3, "reward": 1}}, LARGEST) == {"rollout": 3, "reward": 1}


def test_sizes_are_asked_for_by_the_name_of_the_pool():
    assert parse_pool_sizes(["rollout=3", "decoder=4"]) == {"rollout": 3, "decoder": 4}
    with pytest.raises(InputError, match="'decoders=4' is no size of a pool; allowed: rollout=NUMBER"):
        parse_pool_sizes(["decoders=4"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "names no pool"),
        ({}, "names no pool"),
        ({"learner": 3}, "no pool 'learner'; pools that grow and shrink: rollout, reward"),
        ({"decoder": 2}, "no pool 'decoder'; pools that grow and shrink: rollout, reward"),
        ({"rollout": 0}, "rollout=0 is not possible; allowed: 1 to 16"),
        ({"rollout": 17}, "allowed: 1 to 16"),
        ({"rollout": True}, "rollout=True"),
        ({"rollout": 2.0}, "rollout=2.0"),
        ({"rollout": "2"}, "rollout='2'"),
        ([("rollout", 2)], "names no pool"),
    ],
)
def test_a_size_that_cannot_be_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        target_sizes({"kind": "scale", "value": value}, LARGEST)


def run(follow: AutoScaler, iterations: int, sampling: float, others: float, workers: int = 1) -> list[int]:
    """Workers after each iteration, when sampling takes `sampling` / workers seconds."""
    sizes = []
    for _ in range(iterations):
        waited = sampling / workers
        workers = follow.decide(workers, waited, waited + others)
        sizes.append(workers)
    return sizes


def test_workers_are_added_until_the_wait_is_below_the_share():
    sizes = run(AutoScaler(share=0.5, most=8, window=3), 40, sampling=12.0, others=4.0)
    assert sizes[:3] == [1, 1, 2]  # after a whole window, not before
    assert sizes[-1] == 3  # 12 / 3 = 4 of 8 seconds
    assert sizes == sorted(sizes)


def test_there_are_never_more_than_allowed():
    assert max(run(AutoScaler(share=0.1, most=2), 40, sampling=100.0, others=1.0)) == 2


def test_workers_leave_when_they_are_not_needed():
    assert run(AutoScaler(share=0.5, most=8), 40, sampling=1.0, others=10.0, workers=6)[-1] == 1


@given(
    share=st.floats(0.05, 0.95), most=st.integers(1, 12), sampling=st.floats(0.01, 100.0), others=st.floats(0.01, 100.0)
)
def test_the_rule_comes_to_rest(share, most, sampling, others):
    sizes = run(AutoScaler(share=share, most=most), 120, sampling, others)
    assert min(sizes) >= 1
    assert max(sizes) <= most
    assert len(set(sizes[-30:])) == 1


def test_an_iteration_without_a_length_decides_nothing():
    assert AutoScaler(share=0.5, most=8, window=1).decide(2, 0.0, 0.0) == 2
