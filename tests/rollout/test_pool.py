"""The check that a worker holds the weights that it was given."""

import pytest

from rollout.pool import StaleWeights, check_probe
from rollout.worker import SyncReport


def report(gap: float, version: int = 7) -> SyncReport:
    return SyncReport(version=version, probe_gap=gap, seconds=0.1)


def test_a_worker_with_other_weights_is_named_with_the_number():
    check_probe("rollout-0", report(9e-4), 7, 1e-3)
    with pytest.raises(StaleWeights, match=r"rollout-1 does not hold weights 7: .* by 2\.6 on the probe"):
        check_probe("rollout-1", report(2.6), 7, 1e-3)
    with pytest.raises(StaleWeights, match="rollout-0"):
        check_probe("rollout-0", report(float("nan")), 7, 1e-3)


def test_a_worker_that_names_another_version_is_refused_whatever_it_computes():
    with pytest.raises(StaleWeights, match="rollout-0 says that it holds weights 6; it was given 7"):
        check_probe("rollout-0", report(0.0, version=6), 7, 1e-3)
