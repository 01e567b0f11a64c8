"""Real DeepSpeed ranks in separate processes, without Ray, at every ZeRO stage (`ranks.py`)."""

import pytest

from tests.learner.processes import run
from tests.learner.ranks import at_every_stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500), pytest.mark.xdist_group("learner ranks")]


def _run(world, directory, ranks: int) -> list[dict]:
    """Return each rank's results."""
    return run(at_every_stage, world / "base", directory, ranks=ranks)


@pytest.fixture(scope="module")
def two(world, tmp_path_factory) -> list[dict]:
    return _run(world, tmp_path_factory.mktemp("two"), 2)


def _check_resumed(found: dict) -> None:
    assert found["moved"], "the steps after the checkpoint changed nothing"
    assert found["loaded"], "other weights than those that were saved"
    assert found["resumed"], "other weights than those of a run without a stop"
    straight, resumed = found["rates"]
    assert straight == resumed
    assert len(set(straight)) == 3, "the schedule did not move"


def test_one_rank_goes_on_from_a_checkpoint_bit_for_bit(world, tmp_path):
    (stages,) = _run(world, tmp_path, 1)
    assert list(stages) == [0, 1, 2, 3]
    for found in stages.values():
        _check_resumed(found)


@pytest.mark.parametrize("stage", range(4))
def test_two_ranks_go_on_from_a_checkpoint_bit_for_bit(two, stage):
    for rank in two:
        _check_resumed(rank[stage])


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("stage", range(4))
def test_what_is_not_finite_on_one_rank_is_skipped_by_all_and_leaves_nothing(two, stage, kind):
    """Weights, moments and schedule: the next step is that of an engine which never saw the bad batch."""
    good, bad = (rank[stage]["skipped"][kind] for rank in two)
    assert good["finite"]
    assert bad["finite"] == (kind == "gradient")
    for found in (good, bad):
        assert found["skipped"]
        assert found["norm"] in ("nan", "inf")
        assert found["kept"], "weights changed"
        assert found["again"] == [False, False], "the step after it was not taken"
        assert found["after"], "something of the skipped step was left"
        skipped, straight = found["rates"]
        assert skipped == straight


def test_a_large_model_is_never_whole_on_its_way_to_the_workers(two):
    """Under ZeRO-3 all ranks gather group by group; if rank 0 cannot send, the others do not hang."""
    for stage in range(4):
        first, second = (rank[stage]["sent"] for rank in two)
        assert first["right"]
        assert second["right"]
        assert (first["failed"], second["failed"]) == ("no space", None)
        for found in (first, second):
            assert (found["most"] < 0.4) == (stage == 3)
            assert (found["left"] < 0.3) == (stage == 3), "of what the probe gathered"


def test_the_learner_uses_no_random_numbers(two):
    """Therefore a checkpoint needs no random state."""
    assert not any(found["drew"] for rank in two for found in rank.values())
