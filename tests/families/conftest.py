"""What the families' tests share: a Ray cluster, processes for engines, and Kimi-Audio's checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.families import kimi
from tests.families.sampling import Processes


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a Ray cluster that the runs of a module join, one after another."""
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Kimi-Audio's. Tests only read it."""
    return kimi.write(tmp_path_factory.mktemp("kimi"))
