"""Malformed input: a good setup to break, and how hypothesis is run."""

import pytest
from hypothesis import HealthCheck, settings

from tests.bad_input.door import Setup

settings.register_profile(
    "malformed",
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("malformed")


@pytest.fixture
def setup(tmp_path, world, root) -> Setup:
    """A valid configuration, with data and a checkpoint."""
    return Setup(tmp_path, world, root)
