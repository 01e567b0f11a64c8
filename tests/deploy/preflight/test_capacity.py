"""What a run needs against what there is."""

from pathlib import Path

import pytest

from deploy.preflight import memory
from deploy.preflight.capacity import check_cache, check_disk, check_memory, check_nodes, check_shared_memory
from deploy.preflight.environment import Node
from deploy.preflight.finding import Severity
from deploy.preflight.memory import GIB, MIB
from tests.deploy.preflight.cases import SEVEN_BILLION, all_fine, configured, gpus, machine, only

BF16 = ("model.dtype=bfloat16", "weight_sync.max_logprob_diff=5e-2")
ON_GPUS = (
    *BF16,
    "rollout.num_gpus=1",
    "learner.num_gpus=1",
    "learner.max_tokens_per_micro_batch=1024",
    "rollout.max_num_seqs=8",
)


def looked_at(config, place):
    needs = memory.needs(config, SEVEN_BILLION, reference=True)
    return list(check_memory(config, SEVEN_BILLION, needs, place))


def test_a_machine_that_is_too_small(root):
    found = only(looked_at(configured(root, *BF16), machine(memory=100 * GIB, memory_free=90 * GIB)), Severity.ERROR)
    assert "of the machine's 100 GiB" in found.text
    assert "learner.zero_stage" in found.remedy


def test_a_machine_that_others_use(root):
    found = only(looked_at(configured(root, *BF16), machine(memory=900 * GIB, memory_free=90 * GIB)), Severity.WARNING)
    assert "90 GiB are free now" in found.text


def test_a_machine_that_is_large_enough(root):
    found = all_fine(looked_at(configured(root, *BF16), machine(memory=900 * GIB, memory_free=800 * GIB)))
    roles = [one.text.split(":")[0] for one in found[:3]]
    assert roles == ["rollout", "reward", "learner"]
    assert "start model 13 GiB" in found[2].text


def test_gpus_that_are_too_small_for_the_learner(root):
    place = machine(memory=900 * GIB, memory_free=800 * GIB, gpus=gpus(4, 80))
    found = only(looked_at(configured(root, *ON_GPUS), place), Severity.ERROR)
    assert found.text.startswith("learner: 1 × ")
    assert "of its 80 GiB" in found.text
    assert "raise learner.num_gpus" in found.remedy
    # Sharded over eight, it fits.
    wide = configured(root, *ON_GPUS, "learner.num_workers=8", "learner.zero_stage=3", "anchor.batch_size=16")
    place = machine(memory=900 * GIB, memory_free=800 * GIB, gpus=gpus(9, 80))
    all_fine(looked_at(wide, place))


def test_two_members_of_one_gpu_are_counted_together(root):
    config = configured(root, *ON_GPUS, "learner.num_workers=16", "learner.zero_stage=3", "learner.num_gpus=0.5")
    alone = memory.learner_memory(config, SEVEN_BILLION, reference=True).on_gpu
    assert alone < 60 * GIB < 2 * alone
    place = machine(memory=1900 * GIB, memory_free=1800 * GIB, gpus=gpus(9, 60))
    found = only(looked_at(config, place), Severity.ERROR)
    assert found.text.startswith("learner: 2 × ")


def test_keys_and_values_of_not_even_one_reply(root):
    config = configured(
        root, *BF16, "rollout.cpu_kv_cache_gib=1", "model.max_model_len=100000", "rollout.max_new_tokens=96"
    )
    found = only(check_cache(config, SEVEN_BILLION, None), Severity.ERROR)
    assert "1 GiB are left for the KV cache" in found.text
    assert "raise rollout.cpu_kv_cache_gib" in found.remedy


def test_keys_and_values_of_some_of_the_replies(root):
    # 2 × 28 layers × 512 × 2 bytes × 1024 tokens = 56 MiB a reply; 64 replies in flight
    config = configured(root, *BF16, "rollout.cpu_kv_cache_gib=2", "model.max_model_len=1024")
    assert memory.cache_of_sequence(config, SEVEN_BILLION) == 56 * MIB
    found = only(check_cache(config, SEVEN_BILLION, None), Severity.WARNING)
    assert "2 GiB hold the KV cache of 36 of a worker's 64 replies" in found.text
    assert not list(check_cache(configured(root, *BF16, "rollout.cpu_kv_cache_gib=4"), SEVEN_BILLION, None))


def test_what_the_weights_leave_of_a_gpu(root):
    config = configured(root, *ON_GPUS, "rollout.gpu_memory_utilization=0.5")
    found = only(check_cache(config, SEVEN_BILLION, 24 * GIB), Severity.ERROR)
    assert found.text.startswith("rollout.gpu_memory_utilization: 0 B are left")
    assert not list(check_cache(config, SEVEN_BILLION, 80 * GIB))


def test_a_cluster_without_enough_memory(root):
    config = configured(root, *BF16)
    needs = memory.needs(config, SEVEN_BILLION, reference=True)
    learner = next(need for need in needs if need.role == "learner").host

    def found(*memories: float):
        nodes = [Node(host=f"10.0.0.{i}", resources={"CPU": 8.0}, memory=m) for i, m in enumerate(memories)]
        return list(check_nodes(config, SEVEN_BILLION, needs, nodes))

    assert "of the cluster's 200 GiB" in only(found(200 * GIB), Severity.WARNING).text
    split = only(found(*[learner - GIB] * 4), Severity.WARNING)
    assert "one learner actor needs" in split.text
    all_fine(found(learner + GIB, learner + GIB, 100 * GIB))


def test_an_object_store_for_two_versions_of_the_weights(root):
    config = configured(root, *BF16, "weight_sync.backend=object_store")

    def found(*stores: float):
        nodes = [Node(host="10.0.0.1", resources={"object_store_memory": s}, memory=900 * GIB) for s in stores]
        return list(check_nodes(config, SEVEN_BILLION, memory.needs(config, SEVEN_BILLION, reference=True), nodes))

    all_fine(found(27 * GIB, 30 * GIB))
    smallest = only(found(27 * GIB, 20 * GIB), Severity.WARNING)
    assert "object store: two versions, 26.1 GiB; a node has 20 GiB" in smallest.text


def test_shared_memory_for_a_version_of_the_weights(root):
    config = configured(root, *BF16)
    found = only(check_shared_memory(config, SEVEN_BILLION, machine(shared_free=64 * MIB)), Severity.ERROR)
    assert "/dev/shm: one version, 13 GiB; 64 MiB are free" in found.text
    assert "--shm-size" in found.remedy
    all_fine(check_shared_memory(config, SEVEN_BILLION, machine(shared_free=14 * GIB)))


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ([], 3),  # two are kept, one is being written
        (["checkpoint.interval=40"], 1),
        (["checkpoint.interval=0"], 1),
        (["checkpoint.max_to_keep=0"], 4),
        (["train.num_steps=15"], 2),
    ],
)
def test_room_for_checkpoints(root, overrides, kept):
    config = configured(root, *overrides)
    each = memory.checkpoint(config, SEVEN_BILLION)
    assert (
        f": {kept} checkpoints ×"
        in only(check_disk(config, SEVEN_BILLION, Path("/runs"), (kept - 0.1) * each), Severity.ERROR).text
    )
    only(check_disk(config, SEVEN_BILLION, Path("/runs"), 1.05 * kept * each), Severity.WARNING)
    all_fine(check_disk(config, SEVEN_BILLION, Path("/runs"), 1.2 * kept * each))


def test_weights_that_pass_through_the_runs_directory(root):
    config = configured(root, *BF16, "weight_sync.backend=filesystem")
    each, weights = memory.checkpoint(config, SEVEN_BILLION), 4 * SEVEN_BILLION.parameters
    found = only(check_disk(config, SEVEN_BILLION, Path("/runs"), 3 * each + weights / 2), Severity.ERROR)
    assert "26.1 GiB of published weights" in found.text
    all_fine(check_disk(config, SEVEN_BILLION, Path("/runs"), 1.2 * (3 * each + weights)))
