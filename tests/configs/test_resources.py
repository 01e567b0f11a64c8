"""Ray resources of actors, and of a cluster started on this machine."""

import pytest

from common.errors import InputError
from configs.load import load_config
from configs.validate import local_cluster_resources, required_resources, resources_by_role


@pytest.fixture
def configured(root):
    return lambda *overrides: load_config(root / "configs" / "playground.yaml", list(overrides))


def test_required_resources_leave_out_what_is_0(configured):
    config = configured(
        "rollout.num_cpus=2", "rollout.num_gpus=1", "rollout.resources={rollout: 1, 'accelerator_type:H100': 0}"
    )
    assert required_resources(config.rollout) == {"CPU": 2.0, "GPU": 1.0, "rollout": 1.0}
    assert required_resources(config.reward) == {"CPU": 0.25}
    config = configured("learner.num_cpus=0", "learner.num_gpus=0.5")
    assert resources_by_role(config)["learner"] == (2, {"GPU": 0.5})


def test_decoders_are_counted_where_there_are_any(configured):
    assert list(resources_by_role(configured())) == ["rollout", "reward", "learner"]
    config = configured(
        "reward.decoders.num_workers=3", "reward.decoders.num_gpus=0.5", "reward.decoders.resources={near: 1}"
    )
    assert resources_by_role(config)["reward.decoders"] == (3, {"CPU": 1.0, "GPU": 0.5, "near": 1.0})
    assert local_cluster_resources(config, 2)[1]["near"] >= 3


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rollout.resources={GPU: 1}", "rollout.resources: 'GPU' is not the name.*rollout.num_gpus"),
        ("learner.resources={CPU: 1}", "learner.resources: 'CPU'"),
        ("reward.resources={'a b': 1}", "reward.resources: 'a b'"),
        ("reward.resources={a: -1}", "reward.resources: -1.0 of 'a' is not allowed; from 0"),
        ("reward.resources={a: .nan}", "reward.resources.a: nan is not a finite number"),
        ("reward.resources={a: much}", "reward.resources.a: .*'much'"),
        ("reward.num_cpus=0", "reward.num_cpus: 0, and reward.num_gpus and reward.resources"),
        ("reward.num_gpus=1.5", "reward.num_gpus: 1.5 must be a share of one GPU, or whole GPUs"),
        (
            "reward.decoders.num_gpus=1.5",
            "reward.decoders.num_gpus: 1.5 must be a share of one GPU, or whole GPUs",
        ),
        ("reward.decoders.num_workers=-1", "reward.decoders.num_workers: -1 is too small; at least 0"),
        (
            "learner.placement_strategy=TIGHT",
            "learner.placement_strategy: 'TIGHT' is not allowed; choose from PACK, SPREAD, STRICT_PACK",
        ),
        (
            "weight_sync.backend=pigeon",
            "weight_sync.backend: 'pigeon' is not allowed; choose from shm, filesystem, object_store or broadcast",
        ),
    ],
)
def test_invalid_resources_are_rejected_by_key(configured, override, complaint):
    with pytest.raises(InputError, match=complaint):
        configured(override)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["learner.num_gpus=1"],
            "from GPUs to GPUs or from CPUs to CPUs, and learner.num_gpus is 1 where rollout.num_gpus is 0",
        ),
        (
            ["rollout.num_gpus=2"],
            "and learner.num_gpus is 0 where rollout.num_gpus is 2; use weight_sync.backend=shm, object_store",
        ),
        (
            ["learner.num_gpus=0.5", "rollout.num_gpus=0.5"],
            "broadcast takes a GPU once, and with learner.num_gpus = 0.5 several",
        ),
        (["learner.num_gpus=1", "rollout.num_gpus=0.5"], "with rollout.num_gpus = 0.5 several actors share one"),
    ],
)
def test_a_broadcast_between_members_that_cannot_is_refused(configured, overrides, complaint):
    with pytest.raises(InputError, match=f"weight_sync.backend: .*{complaint}"):
        configured("weight_sync.backend=broadcast", *overrides)
    configured("weight_sync.backend=object_store", *overrides)
    configured("weight_sync.backend=broadcast", "learner.num_gpus=1", "rollout.num_gpus=2")


def test_a_local_cluster_has_spare_resources(configured):
    config = configured(
        "rollout.num_workers=3", "rollout.num_cpus=4", "rollout.resources={rollout: 1}", "learner.num_gpus=1"
    )
    cpus, resources = local_cluster_resources(config, 2)
    assert cpus >= sum(members * needed.get("CPU", 0) for members, needed in resources_by_role(config).values()) + 1
    assert resources["rollout"] >= 2 * config.rollout.num_workers
    assert set(resources) == {"rollout"}, "GPUs are counted by Ray, and those that are not there must not be"
    assert local_cluster_resources(config, 64)[0] >= 64
