"""The probe check, and how prompts are shared out."""

import pytest

from rollout.pool import StaleWeights, _shares, check_probes
from rollout.worker import SyncReport


def report(gap: float) -> SyncReport:
    return SyncReport(version=7, probe_gap=gap, seconds=0.1)


def test_a_worker_with_other_weights_is_named_with_the_number():
    check_probes({"rollout-0": report(1e-5), "rollout-1": report(9e-4)}, 1e-3)
    with pytest.raises(StaleWeights, match=r"rollout-1 does not hold weights 7: .* by 2\.6 on the probe"):
        check_probes({"rollout-0": report(1e-5), "rollout-1": report(2.6)}, 1e-3)
    with pytest.raises(StaleWeights, match="rollout-0"):
        check_probes({"rollout-0": report(float("nan"))}, 1e-3)


def test_shares_cover_everything_once():
    for count, parts in ((16, 3), (2, 4), (0, 2), (5, 1)):
        taken = [index for share in _shares(count, parts) for index in range(count)[share]]
        assert taken == list(range(count))
