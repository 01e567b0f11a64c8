"""Which rows belong to which iteration: one source in the order that it always had, several by their weights."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sampler import EpochSampler, MixtureSampler, build_sampler

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=4)
WEIGHTS = st.lists(st.floats(0.01, 100.0), min_size=4, max_size=4)


def test_one_source_is_dealt_out_in_the_order_that_it_always_was():
    """Runs that were begun before must go on: NumPy's permutation, of the seed, the stream and the epoch."""
    wanted = [int(row) for epoch in range(2) for row in np.random.default_rng([7, 1, epoch]).permutation(50)]
    assert EpochSampler(50, 7, 1).take(100) == wanted
    assert build_sampler([50], [3.0], 7, 1).take(100) == wanted


def test_shares_of_every_iteration_are_those_of_the_weights():
    mixture = MixtureSampler([1000, 10, 500], [6.0, 1.0, 3.0], 0, 0)
    for _ in range(40):
        sources = Counter("abc"[(row >= 1000) + (row >= 1010)] for row in mixture.take(20))
        assert abs(sources["a"] - 12) <= 1
        assert abs(sources["b"] - 2) <= 1
        assert abs(sources["c"] - 6) <= 1


@given(counts=COUNTS, weights=WEIGHTS)
def test_a_source_is_passed_through_before_it_repeats(counts, weights):
    mixture = MixtureSampler(counts, weights[: len(counts)], 3, 0)
    taken = mixture.take(300)
    begin = 0
    for count in counts:
        own = [row - begin for row in taken if begin <= row < begin + count]
        for epoch in range(len(own) // count):
            assert sorted(own[epoch * count : (epoch + 1) * count]) == list(range(count))
        begin += count


@given(
    counts=COUNTS, weights=WEIGHTS, steps=st.lists(st.integers(1, 40), min_size=1, max_size=8), cut=st.integers(0, 7)
)
def test_it_goes_on_from_a_position_alone(counts, weights, steps, cut):
    weights = weights[: len(counts)]
    whole = MixtureSampler(counts, weights, 5, 0)
    straight = [whole.take(rows) for rows in steps]
    first, second = MixtureSampler(counts, weights, 5, 0), MixtureSampler(counts, weights, 5, 0)
    before = [first.take(rows) for rows in steps[:cut]]
    second.position = first.position
    assert before + [second.take(rows) for rows in steps[cut:]] == straight


def test_a_far_position_is_reached_at_once():
    near, far = MixtureSampler([10, 20], [1.0, 2.0], 0, 0), MixtureSampler([10, 20], [1.0, 2.0], 0, 0)
    near.take(3000)
    far.position = 3000
    assert near.take(50) == far.take(50)
    far.position = 10**12
    assert Counter(row >= 10 for row in far.take(300)) == {True: 200, False: 100}


def test_the_order_is_of_the_seed():
    one, other = (MixtureSampler([100, 100], [1.0, 1.0], seed, 0).take(100) for seed in (1, 2))
    assert one != other
    assert MixtureSampler([100, 100], [1.0, 1.0], 1, 0).take(100) == one
    assert MixtureSampler([100, 100], [1.0, 1.0], 1, 1).take(100) != one
    assert [row % 100 for row in one[::2]] != [row % 100 for row in one[1::2]], "sources have orders of their own"


@pytest.mark.parametrize("weights", [[1e-6, 1e6], [1.0, 1e6]])
def test_a_source_of_little_weight_is_not_forgotten(weights):
    mixture = MixtureSampler([5, 5], weights, 0, 0)
    mixture.position = round(sum(weights) / weights[0] * 0.5) - 2
    assert any(row < 5 for row in mixture.take(5))
