"""Real DeepSpeed ranks take the same step at every ZeRO stage and number of ranks (`same_step.py`).

`test_lost.py` compares a group of Ray actors with the same rank.
"""

import numpy as np
import pytest

from learner.step_metrics import StepMetrics
from tests.learner.processes import run
from tests.learner.same_step import two_steps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400), pytest.mark.xdist_group("learner group")]
STAGES = [1, 2, 3]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> dict:
    """One rank without ZeRO."""
    [found] = run(two_steps, world, [0], tmp_path_factory.mktemp("alone"), ranks=1)
    return found[0]


@pytest.fixture(scope="module")
def two(world, tmp_path_factory) -> list[dict]:
    return run(two_steps, world, STAGES, tmp_path_factory.mktemp("two"), ranks=2)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_take_the_step_of_one(alone, two, stage):
    first, second = (rank[stage] for rank in two)
    tallies = []
    for one, *others in zip(alone["reports"], first["reports"], second["reports"], strict=True):
        merged = StepMetrics()
        for other in others:
            merged.merge(other.metrics)
            assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
        for name in ("loss_preference", "loss_anchor"):
            assert merged.total(name) == pytest.approx(one.metrics.total(name), abs=1e-5)
        assert merged.mean("kl_speech") == pytest.approx(one.metrics.mean("kl_speech"), abs=1e-5)
        tallies.append(one.metrics)
    assert tallies[0].mean("kl_text") == pytest.approx(0.0, abs=1e-6)
    assert tallies[1].mean("kl_text") > 0
    for kind in ("weights", "saved"):
        assert set(first[kind]) == set(alone[kind])
        gaps = {name: np.abs(first[kind][name] - values).max() for name, values in alone[kind].items()}
        assert max(gaps.values()) < 1e-4, (kind, gaps)
    assert np.abs(first["logps"] - alone["logps"]).max() < 1e-3
