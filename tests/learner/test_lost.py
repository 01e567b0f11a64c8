"""A learner group through failures: its errors, and what it leaves behind."""

import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from cluster.placement import Placement
from common.errors import InputError
from learner.batch_dump import read_batch
from learner.group import CLOSE_TIMEOUT_S, LearnerGroup, LearnerLost, NonFiniteStep
from learner.micro_batches import TrainingSample
from tests.learner.groups import learner_group, mixed_rows
from tests.learner.processes import run
from tests.learner.same_step import MIX, two_steps
from tests.learner.same_step import probe as probe_of
from weight_sync.update import memory_directory

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def rows(world):
    return mixed_rows(world)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> dict:
    """One rank after two steps, without ZeRO and without Ray."""
    [found] = run(two_steps, world, [0], tmp_path_factory.mktemp("alone"), ranks=1)
    return found[0]


def check_same(group: LearnerGroup, rows: list[TrainingSample], alone: dict) -> None:
    """The group's two steps, and the weights that workers receive, equal those of one rank."""
    for one in alone["reports"]:
        learned = group.step(rows, MIX)
        for name in ("loss_preference", "loss_anchor"):
            assert learned.metrics.total(name) == pytest.approx(one.metrics.total(name), abs=1e-5)
        assert learned.metrics.mean("kl_speech") == pytest.approx(one.metrics.mean("kl_speech"), abs=1e-5)
        assert learned.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
    published = group.publish(probe_of(rows))
    assert published.update.version == 2
    sent = load_file(published.update.path)
    assert set(sent) == set(alone["weights"])
    for name, values in alone["weights"].items():
        assert np.abs(sent[name].numpy() - values).max() < 1e-4, name
    assert np.abs(published.probe_logps[0] - alone["logps"]).max() < 1e-3


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def processes(group: LearnerGroup) -> dict[str, int]:
    calls = {name: rank.__ray_call__.remote(lambda _: os.getpid()) for name, rank in group._ranks.items()}
    return {name: ray.get(call, timeout=60) for name, call in calls.items()}


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stop_at_once(group: LearnerGroup) -> None:
    began = time.monotonic()
    group.stop()
    assert time.monotonic() - began < CLOSE_TIMEOUT_S / 2


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.1)


def test_a_group_through_bad_batches_a_full_disk_death_and_silence(world, rows, alone, cluster, tmp_path):
    """One story, because every group takes seconds to start."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    name = f"lost-{os.getpid()}"
    place = Placement("learner", *[{"CPU": 0.5}] * 2)  # all that the cluster has
    group = learner_group(world, 2, 2, name, place, faults=tmp_path / "faults")
    group.start()
    probe = probe_of(rows)
    check_same(group, rows, alone)

    # Non-finite batches: skipped, counted, and finally dumped.
    spoilt = [replace(rows[0], rollout_logprobs=np.full_like(rows[0].rollout_logprobs, np.nan)), *rows[1:]]
    start = load_file(group.publish(probe).update.path)
    learned = group.step(spoilt, 0.4)
    assert learned.skipped
    assert learned.not_finite in ("loss of learner-0", "loss of learner-1")
    assert learned.gradient_norm is None
    published = group.publish(probe)
    assert published.update.version == group.version == 3
    same = load_file(published.update.path)
    assert all(torch.equal(start[name], same[name]) for name in start)
    assert not group.step(rows, 0.4).skipped
    assert group.step(spoilt, 0.4).skipped, "those in a row are counted, and the last was not skipped"
    with pytest.raises(NonFiniteStep, match="2 steps in a row were skipped"):
        group.step(spoilt, 0.4)
    kept = read_batch(tmp_path / "faults/step-000006.parquet")
    assert (kept.version, kept.mix, kept.reason) == (6, 0.4, learned.not_finite)
    assert len(kept.items) == len(rows)
    assert np.isnan(kept.items[0].rollout_logprobs).all()
    assert not group.step(rows, 0.4).skipped

    # A full disk: the kernel's own error, through a limit on file sizes.
    pids = processes(group)
    for pid in pids.values():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match="File too large"):
        group.save(checkpoint)
    assert not (checkpoint / "learner.json").exists()
    for pid in pids.values():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    group.save(checkpoint)
    expected = load_file(group.publish(probe).update.path)

    # An error of the work itself is raised unchanged, and the group lives.
    with pytest.raises(InputError, match="other parameters"):
        group._wait_for_ranks({"learner-0": group._ranks["learner-0"].load.remote(checkpoint, "other")}, 60, "loading")

    # The rank with the published weights is killed while the other waits for it.
    left = list(memory_directory().glob(f"duet-{name}-*"))
    assert len(left) == 1
    os.kill(pids["learner-0"], signal.SIGKILL)
    with pytest.raises(LearnerLost, match="learner-0 died while taking a step") as lost:
        group.step(rows, 0.4)
    assert lost.value.names == ["learner-0"]
    stop_at_once(group)
    assert not left[0].exists(), "weights of a dead rank were left in memory"

    # Another group takes over at once, with the placement that no other actor could take.
    other = Placement("rollout-9", {"CPU": 0.5})
    group = learner_group(world, 2, 2, name, place, step_seconds=10)
    group.start()
    group.load(checkpoint, 5)
    published = group.publish(probe)
    assert published.update.version == 5
    assert not other.held
    found = load_file(published.update.path)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    await_end(pids["learner-1"])

    # A stopped rank blocks the others. All are killed, the stopped one too.
    pids = processes(group)
    os.kill(pids["learner-1"], signal.SIGSTOP)
    with pytest.raises(LearnerLost, match=r"learner-1.* no answer within 10 s while taking a step"):
        group.step(rows, 0.4)
    stop_at_once(group)
    for pid in pids.values():
        await_end(pid)
    assert not list(memory_directory().glob(f"duet-{name}-*")), "memory files outlived the group"
