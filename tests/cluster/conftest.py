"""One Ray cluster for the tests of this folder, as each takes seconds to start; every module is a driver of its own."""

import time

import pytest
import ray
from ray.cluster_utils import Cluster

CPUS = 8


@pytest.fixture(scope="session")
def _head():
    """One node, which notices within seconds when another one is lost."""
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 5000,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": CPUS, "include_dashboard": False, "_system_config": quick}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def cluster(_head):
    """The cluster, joined, with all that it has free."""
    ray.init(address=_head.address, log_to_driver=False)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != CPUS:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
    yield _head
    ray.shutdown()
