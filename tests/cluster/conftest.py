"""One Ray cluster for the tests of this folder, as each takes seconds to start; every module is a driver of its own.

It ends when a test of another folder comes next: a process that holds one cluster and starts another in between may
find that the first starts no more members.
"""

import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

CPUS = 8
HEADS: list[Cluster] = []
"""The cluster while there is one."""


def _head() -> Cluster:
    """One node, which notices within seconds when another one is lost."""
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 5000,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": CPUS, "include_dashboard": False, "_system_config": quick}
    return Cluster(initialize_head=True, head_node_args=head)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None, None, None]:
    yield  # the module's driver has left
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        while HEADS:
            HEADS.pop().shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster, joined, with all that it has free."""
    if not HEADS:
        HEADS.append(_head())
    ray.init(address=HEADS[0].address, log_to_driver=False)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != CPUS:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
    yield HEADS[0]
    ray.shutdown()
