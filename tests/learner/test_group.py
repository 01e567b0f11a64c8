"""The real DeepSpeed group: whatever the ZeRO stage and the number of ranks, the same step."""

import numpy as np
import pytest
import ray
from safetensors.torch import load_file

from learner.micro_batches import TrainingSample
from tests.learner.groups import learner_group, mixed_rows

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def rows(world) -> list[TrainingSample]:
    return mixed_rows(world)


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def two_steps(world, rows, ranks: int, stage: int, directory=None):
    """Weights after two steps, what the steps reported, and the probe."""
    group = learner_group(world, ranks, stage)
    group.start()
    learned = [group.step(rows, 0.4) for _ in range(2)]
    probe = [np.concatenate([rows[0].prompt_ids, rows[0].reply_ids])]
    published = group.publish(probe)
    weights = load_file(published.parcel.path)
    if directory is not None:
        group.save(directory)
    group.stop()
    assert published.parcel.version == 2
    assert not published.parcel.path.exists(), "the memory file outlived the group"
    return weights, learned, published.probe_logps[0]


@pytest.fixture(scope="module")
def alone(world, rows, cluster, tmp_path_factory):
    """One rank without ZeRO, and its checkpoint."""
    directory = tmp_path_factory.mktemp("alone")
    return *two_steps(world, rows, 1, 0, directory), directory


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_take_the_step_of_one(world, rows, alone, stage, tmp_path):
    weights, learned, probe, directory = alone
    other_weights, other_learned, other_probe = two_steps(world, rows, 2, stage, tmp_path)
    for one, other in zip(learned, other_learned, strict=True):
        for name in ("loss_preference", "loss_anchor"):
            assert other.tally.total(name) == pytest.approx(one.tally.total(name), abs=1e-5)
        assert other.tally.mean("kl_speech") == pytest.approx(one.tally.mean("kl_speech"), abs=1e-5)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
    assert learned[0].tally.mean("kl_text") == pytest.approx(0.0, abs=1e-6)
    assert learned[1].tally.mean("kl_text") > 0
    assert set(other_weights) == set(weights)
    for name in weights:
        assert (other_weights[name] - weights[name]).abs().max() < 1e-4, name
    assert np.abs(other_probe - probe).max() < 1e-3
    saved, own = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(own)
    assert max((saved[name] - own[name]).abs().max().item() for name in saved) < 1e-4
