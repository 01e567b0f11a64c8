"""Pool sizes: from requests within bounds, or from the learner's wait without oscillation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from controller.autoscaling import AutoScaler, target_sizes
from controller.requests import parse_pool_sizes

MAX_SIZES = {"rollout": 16, "reward": 16}


def test_sizes_are_read_from_a_request():
    assert target_sizes({"kind": "scale", "value": {"rollout": 3, "reward": 1}}, MAX_SIZES) == {
        "rollout": 3,
        "reward": 1,
    }


def test_sizes_are_parsed_by_pool_name():
    assert parse_pool_sizes(["rollout=3", "decoder=4"]) == {"rollout": 3, "decoder": 4}
    with pytest.raises(InputError, match="'decoders=4' is not a pool size; allowed: rollout=NUMBER"):
        parse_pool_sizes(["decoders=4"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "names no pool"),
        ({}, "names no pool"),
        ({"learner": 3}, "unknown pool 'learner'; allowed: rollout, reward"),
        ({"decoder": 2}, "unknown pool 'decoder'; allowed: rollout, reward"),
        ({"rollout": 0}, "rollout=0 is out of range; allowed: 1 to 16"),
        ({"rollout": 17}, "allowed: 1 to 16"),
        ({"rollout": True}, "rollout=True"),
        ({"rollout": 2.0}, "rollout=2.0"),
        ({"rollout": "2"}, "rollout='2'"),
        ([("rollout", 2)], "names no pool"),
    ],
)
def test_an_invalid_size_is_rejected(value, words):
    with pytest.raises(ValueError, match=words):
        target_sizes({"kind": "scale", "value": value}, MAX_SIZES)


def run(scaler: AutoScaler, iterations: int, sampling: float, others: float, workers: int = 1) -> list[int]:
    """Workers after each iteration, when sampling takes `sampling` / workers seconds."""
    sizes = []
    for _ in range(iterations):
        wait = sampling / workers
        workers = scaler.decide(workers, wait, wait + others)
        sizes.append(workers)
    return sizes


def test_workers_are_added_until_the_wait_is_below_the_target():
    sizes = run(AutoScaler(target_wait=0.5, max_workers=8, window=3), 40, sampling=12.0, others=4.0)
    assert sizes[:3] == [1, 1, 2]  # after a whole window, not before
    assert sizes[-1] == 3  # 12 / 3 = 4 of 8 seconds
    assert sizes == sorted(sizes)


def test_there_are_never_more_than_allowed():
    assert max(run(AutoScaler(target_wait=0.1, max_workers=2), 40, sampling=100.0, others=1.0)) == 2


def test_spare_workers_are_removed():
    assert run(AutoScaler(target_wait=0.5, max_workers=8), 40, sampling=1.0, others=10.0, workers=6)[-1] == 1


@given(
    share=st.floats(0.05, 0.95), most=st.integers(1, 12), sampling=st.floats(0.01, 100.0), others=st.floats(0.01, 100.0)
)
def test_the_size_converges(share, most, sampling, others):
    sizes = run(AutoScaler(target_wait=share, max_workers=most), 120, sampling, others)
    assert min(sizes) >= 1
    assert max(sizes) <= most
    assert len(set(sizes[-30:])) == 1


def test_an_iteration_without_a_length_decides_nothing():
    assert AutoScaler(target_wait=0.5, max_workers=8, window=1).decide(2, 0.0, 0.0) == 2
