"""Clusters as files: each is of the form that its reader wants, and has room for the configuration it is made for."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from configs.load import load_config
from configs.validate import resources_by_role


def one(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def kube_groups(spec: dict) -> dict[str, tuple[dict[str, float], int]]:
    """What a node of each group of a RayCluster offers, in Ray's resources, and how many there can be."""
    groups = {}
    for group in spec["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        offered = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        # KubeRay puts it into a command line: JSON within quotes that the shell takes away.
        own = json.loads(json.loads(group["rayStartParams"]["resources"]))
        groups[group["groupName"]] = (offered | own, group["maxReplicas"])
    return groups


def launcher_groups(cluster: dict) -> dict[str, tuple[dict[str, float], int]]:
    kinds = {name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]}
    return {name: ({"GPU": 0, **kind["resources"]}, kind["max_workers"]) for name, kind in kinds.items()}


def fitting(offered: dict[str, float], needed: dict[str, float]) -> int:
    """Members that have room on a node."""
    return int(min(offered.get(what, 0) / amount for what, amount in needed.items()))


CLUSTERS = {
    "KubeRay, GPUs": ("configs/gpu-cluster.yaml", "deploy/kuberay/raycluster.yaml"),
    "KubeRay, no GPUs": ("configs/cpu-cluster.yaml", "deploy/kuberay/rayjob.yaml"),
    "launcher, GPUs": ("configs/gpu-cluster.yaml", "deploy/ray-cluster.yaml"),
}


def groups_of(root: Path, file: str) -> dict[str, tuple[dict[str, float], int]]:
    content = one(root / file)
    if "kind" not in content:
        return launcher_groups(content)
    spec = content["spec"]
    return kube_groups(spec["rayClusterSpec"] if content["kind"] == "RayJob" else spec)


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_member_has_room_in_the_group_of_its_role_and_in_no_other(root, name):
    configuration, cluster = CLUSTERS[name]
    groups = groups_of(root, cluster)
    assert set(groups) == {"rollout", "reward", "learner"}
    for role, (members, needed) in resources_by_role(load_config(root / configuration, [])).items():
        for group, (offered, most) in groups.items():
            room = fitting(offered, needed)
            if group != role:
                assert room == 0, f"{role} would take room of {group}"
                continue
            assert room * most >= members, f"{most} nodes with room for {room} each hold no {members} of {role}"
            # The resource of the group's own counts the members that fit, so that it says what the others say.
            assert offered[role] == room
            assert offered["GPU"] == room * needed.get("GPU", 0), f"a node of {role} has GPUs that no actor can use"


@pytest.mark.parametrize("name", ["KubeRay, GPUs", "launcher, GPUs"])
def test_rollouts_can_grow_to_twice_their_number(root, name):
    configuration, cluster = CLUSTERS[name]
    config = load_config(root / configuration, [])
    members, needed = resources_by_role(config)["rollout"]
    offered, most = groups_of(root, cluster)["rollout"]
    assert fitting(offered, needed) * most >= 2 * members
    assert config.rollout.num_gpus * members + config.learner.num_gpus * config.learner.num_workers >= 8


def test_ranks_of_one_node_fit_on_one(root):
    config = load_config(root / "configs/gpu-cluster.yaml", [])
    ranks, needed = resources_by_role(config)["learner"]
    assert config.learner.placement_strategy == "STRICT_PACK"
    for cluster in ("deploy/kuberay/raycluster.yaml", "deploy/ray-cluster.yaml"):
        offered, _ = groups_of(root, cluster)["learner"]
        assert fitting(offered, needed) >= ranks


@pytest.mark.parametrize("configuration", ["configs/gpu-cluster.yaml", "configs/cpu-cluster.yaml"])
def test_members_of_several_nodes_exchange_weights_through_storage_that_all_see(root, configuration):
    config = load_config(root / configuration, [])
    assert config.weight_sync.backend == "filesystem"
    shared = Path(config.run.directory).parts[:2]
    for file in ("deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml"):
        content = one(root / file)
        spec = content["spec"].get("rayClusterSpec", content["spec"])
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            [volume] = pod["volumes"]
            [mount] = pod["containers"][0]["volumeMounts"]
            assert Path(mount["mountPath"]).parts == shared
            assert mount["name"] == volume["name"]
            claim = one(root / "deploy/kuberay/shared.yaml")
            assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert f"-v /{shared[1]}:/{shared[1]}" in one(root / "deploy/ray-cluster.yaml")["docker"]["run_options"]


def test_the_launcher_takes_its_file(root):
    cluster = prepare_config(one(root / "deploy/ray-cluster.yaml"))
    validate_config(cluster)
    del cluster["available_node_types"]["rollout"]["resources"]["rollout"]
    cluster["available_node_types"]["rollout"]["resource"] = {"rollout": 1}
    with pytest.raises(Exception, match="resource"):  # it does look
        validate_config(cluster)
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert sum("deploy/node.sh head" in start for start in starts) == 1
    assert sum("deploy/node.sh worker $RAY_HEAD_IP:6379" in start for start in starts) == 1


def test_kuberay_files_are_of_ray_as_locked_ask_for_a_token_and_give_a_run_time_to_stop(root):
    locked = re.search(r"^ray==(\S+)$", (root / "requirements/cpu.lock").read_text(), re.MULTILINE)
    assert locked is not None
    for file, image in (("raycluster", "gpu"), ("rayjob", "cpu")):
        content = one(root / f"deploy/kuberay/{file}.yaml")
        assert content["apiVersion"] == "ray.io/v1"
        spec = content["spec"].get("rayClusterSpec", content["spec"])
        assert spec["rayVersion"] == locked[1]
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert all(type(value) is str for value in group["rayStartParams"].values())
            pod = group["template"]["spec"]
            assert pod["restartPolicy"] == "Never"
            [container] = pod["containers"]
            assert container["image"] == f"REGISTRY/duet:{image}"
            assert container["resources"]["limits"] == container["resources"]["requests"]
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    cluster = one(root / "deploy/kuberay/raycluster.yaml")
    [head] = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "3600"} in head["env"]
    port = load_config(root / "configs/gpu-cluster.yaml", []).metrics.port
    assert {"name": "duet-metrics", "containerPort": port} in head["ports"]
    job = one(root / "deploy/kuberay/rayjob.yaml")["spec"]
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "3600"}}


def test_the_job_of_kuberay_is_a_command_of_duet(root):
    from duet.__main__ import load_command

    command = one(root / "deploy/kuberay/rayjob.yaml")["spec"]["entrypoint"]
    folder, _, words = command.partition(" && python -m duet ")
    assert folder == "cd /opt/duet"
    name, *arguments = words.split()
    options = load_command(name).make_context(name, arguments).params
    [config] = options["config"]
    assert load_config(root / config, options["overrides"]).run.name == "playground"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_images_are_set_up_as_make_does(root, kind):
    lines = (root / f"deploy/Dockerfile.{kind}").read_text().splitlines()
    steps = [line for line in lines if line and not line.startswith(("#", " "))]
    assert "FROM python:3.11-slim-bookworm" in steps
    assert "RUN scripts/setup.sh packages" in steps
    assert steps.index("RUN scripts/setup.sh packages") < steps.index("COPY --chown=duet:duet . .")
    assert steps.index("COPY --chown=duet:duet . .") < steps.index("RUN scripts/setup.sh")
    assert ("ENV DUET_SETUP=gpu" in steps) is (kind == "gpu")
    for step in steps:
        if (copied := re.match(r"COPY --chown=\S+ (?P<from>.*) \S+$", step)) is not None:
            assert all((root / source).exists() for source in copied["from"].split())
    assert [step for step in steps if step.startswith("USER")][-1] == "USER duet", "an image that runs as root"


def test_an_image_has_what_runs_and_nothing_else_of_the_tree(root):
    lines = (root / ".dockerignore").read_text().splitlines()
    ignored = {line for line in lines if line and not line.startswith("#")}
    assert {".git", ".venv", "runs"} <= ignored
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    folders = {path.partition("/")[0] for path in tracked.splitlines() if "/" in path}
    assert {"controller", "configs", "deploy", "playground", "requirements", "scripts"} <= folders - ignored
