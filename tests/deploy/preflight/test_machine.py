"""What there is to run on, as the system tells it."""

import os

import pytest
import ray

from common.errors import InputError
from deploy.preflight.environment import address, inspect_machine, memory, nodes, parse_gpus
from tests.deploy.preflight.cases import configured

MEMINFO = """MemTotal:       65536000 kB
MemFree:         1000000 kB
MemAvailable:   32768000 kB
"""
KIB = 1024.0


def test_memory_of_the_machine():
    assert memory(MEMINFO, [None, None], [None, None]) == (65536000 * KIB, 32768000 * KIB)


def test_memory_of_a_container_that_may_use_less():
    total, free = memory(MEMINFO, [8e9, None], [3e9, None])
    assert (total, free) == (8e9, 5e9)
    # A control group without a limit says a number that no machine has.
    assert memory(MEMINFO, [None, 2.0**63], [None, 1e9])[0] == 65536000 * KIB


def test_gpus_as_the_driver_lists_them():
    found = parse_gpus("NVIDIA H100 80GB HBM3, 81559, 81037\nNVIDIA A10, G, 23028, 100\n")
    assert [(gpu.name, gpu.total / 2**20, gpu.free / 2**20) for gpu in found] == [
        ("NVIDIA H100 80GB HBM3", 81559, 81037),
        ("NVIDIA A10, G", 23028, 100),
    ]
    assert parse_gpus("No devices were found\n") == ()
    assert parse_gpus("NVIDIA GB10, [N/A], [N/A]\n") == ()


def test_this_machine():
    found = inspect_machine()
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert 0 < found.memory_free <= found.memory
    assert found.shared.is_dir()


def test_the_cluster_that_a_run_would_join(root, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address(configured(root)) == ""
    assert address(configured(root, "cluster.address=local")) == ""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address(configured(root)) == "10.0.0.1:6379"
    assert address(configured(root, "cluster.address=10.0.0.2:6379")) == "10.0.0.2:6379"


def test_a_cluster_that_does_not_answer():
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 does not answer"):
        nodes("127.0.0.1:9")
    assert not ray.is_initialized()
