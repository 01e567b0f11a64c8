"""Weights through Ray's object store: files arrive unchanged, and nothing stays in the store."""

import os
import time
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from weight_sync.receiver import fetch_files
from weight_sync.senders import FileEntry, ObjectSender

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("rollout fetch")]


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def stored() -> int:
    """Return the use of this node's object store, in whole megabytes."""
    used = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
    return round(used / 1e6)


def comes(true) -> bool:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


def open_files() -> list[str]:
    """Return this process's open files with weights."""
    return [target for fd in Path("/proc/self/fd").iterdir() if "duet-weights" in (target := os.path.realpath(fd))]


def test_pieces_arrive_as_files_and_are_freed_without_references(cluster):
    weights = [{"a": torch.randn(500, 1000), "b": torch.randn(7).bfloat16()}, {"c": torch.randn(750, 1000)}]
    groups = [[FileEntry.from_tensor(name, tensor) for name, tensor in group.items()] for group in weights]
    sender = ObjectSender()
    for version in (1, 2):
        update = sender.send(groups, iter(weights), version, whole=True)
        assert len(update.pieces) == 2
        found, size = {}, 0
        for path in fetch_files(update, "rollout-0"):
            assert len(open_files()) == 1, "a piece at a time"
            size += path.stat().st_size
            found |= load_file(path)  # maps it, as an engine does
        assert size == update.size
        assert len(found) == 3
        assert all(torch.equal(found[name], tensor) for group in weights for name, tensor in group.items())
        assert not open_files()
        assert comes(lambda: stored() == 5), "the previous version was not freed"
    sender.close()
    del update
    assert comes(lambda: stored() == 0)
