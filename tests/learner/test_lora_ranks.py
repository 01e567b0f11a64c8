"""Adapters in two real DeepSpeed ranks, without Ray, at every ZeRO stage (`adapted_ranks.py`)."""

import pytest

from tests.learner.adapted_ranks import adapted_at_every_stage
from tests.learner.processes import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500), pytest.mark.xdist_group("learner lora ranks")]
STAGES = range(4)


@pytest.fixture(scope="module")
def two(world, tmp_path_factory) -> list[dict]:
    return run(adapted_at_every_stage, world / "base", tmp_path_factory.mktemp("adapted"), ranks=2)


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_learn_and_nothing_else(two, stage):
    for rank in two:
        found = rank[stage]
        assert found["moved"]
        assert found["kept"], "a weight changed"
        names = {name.rpartition(".")[2] for name in found["adapted"]}
        assert names == {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
        assert {name.split(".")[2] for name in found["adapted"]} == {"1", "2", "3"}  # layer 0 is frozen


@pytest.mark.parametrize("stage", STAGES)
def test_the_start_model_is_the_same_model_without_them(two, stage):
    """After two steps; in one of them a rank had no row to compare."""
    for rank in two:
        assert not rank[stage]["copy"]
        assert rank[stage]["start"] < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_same_to_the_bit(two, stage):
    for rank in two:
        assert rank[stage]["loaded"]
        assert rank[stage]["resumed"]


def test_all_stages_and_ranks_come_to_the_same(two):
    for rank in two:
        for stage in STAGES:
            assert rank[stage]["norm"] == pytest.approx(two[0][0]["norm"], rel=1e-5)
            assert rank[stage]["logps"] == pytest.approx(two[0][0]["logps"], abs=1e-3)
        assert rank[2]["norm"] == two[0][2]["norm"]


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_alone_are_sent_and_kept(two, stage):
    found = two[0][stage]
    assert found["sent"]
    assert found["files"]
    assert found["scale"] == 32.0 / 4
    assert not found["whole"]
    assert 1.0 < found["bytes"] < 1.1  # and a header


def test_a_checkpoint_of_other_adapters_is_refused(two):
    for rank in two:
        larger, others, none = rank[0]["refused"]
        assert larger.startswith("learner.lora.r: 8, but")
        assert "resume with learner.lora.r=4" in larger
        assert others.startswith("learner.lora.target_modules: *_proj and model.freeze do not name the layers")
        assert "was saved of other parameters, or with others frozen or adapted, than model.path" in none
