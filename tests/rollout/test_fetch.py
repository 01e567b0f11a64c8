"""Weights that come through Ray's object store: the same files, and nothing that stays."""

import gc
import os
import time

import pytest
import ray
import torch
from safetensors.torch import load_file

from learner.layout import Entry
from learner.send import ObjectSender
from rollout.fetch import fetch

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def stored(reference: ray.ObjectRef) -> bool:
    """Whether its object is in the store of this node."""
    return ray.experimental.get_object_locations([reference], timeout_ms=5000)[reference]["object_size"] > 0


def test_pieces_arrive_as_files_and_go_when_the_next_version_is_there(cluster):
    weights = [{"a": torch.randn(300, 1000), "b": torch.randn(7).bfloat16()}, {"c": torch.randn(500, 1000)}]
    groups = [[Entry.of(name, tensor) for name, tensor in group.items()] for group in weights]
    sender = ObjectSender()
    open_before = set(os.listdir("/proc/self/fd"))
    free = []
    for version in (1, 2):
        parcel = sender.send(groups, weights, version, whole=True)
        assert len(parcel.pieces) == 2
        found, sizes = {}, 0
        for path in fetch(parcel, "rollout-0"):
            sizes += path.stat().st_size
            found |= {name: tensor.clone() for name, tensor in load_file(path).items()}
        assert parcel.size == sizes
        assert all(torch.equal(found[name], tensor) for group in weights for name, tensor in group.items())
        assert len(found) == 3
        gc.collect()
        free.append(ray.available_resources()["object_store_memory"])
    assert set(os.listdir("/proc/self/fd")) <= open_before | set(os.listdir("/proc/self/fd"))
    held = set(os.listdir("/proc/self/fd"))
    assert not [fd for fd in held if os.path.exists(f"/proc/self/fd/{fd}") and "duet-weights" in _target(fd)]
    parcel = None
    sender.close()
    gc.collect()
    assert _comes(lambda: ray.available_resources()["object_store_memory"] > free[0])


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _comes(true) -> bool:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()
