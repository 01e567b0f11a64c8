"""Registry of all metrics, for the endpoint, the dashboards and the documentation."""

from typing import Any

from observability.metrics import live, training
from observability.metrics.metric import MetricSpec

GROUPS: dict[str, tuple[MetricSpec[Any], ...]] = {
    "Run": live.RUN,
    "Training": training.TRAINING,
    "Speech": training.SPEECH,
    "Pools": live.POOLS,
    "Work": training.WORK,
    "Judges": training.JUDGES,
}
"""Metrics by heading of docs/metrics.md."""
ITERATION_METRICS = (*training.TRAINING, *training.SPEECH, *training.WORK, *training.JUDGES)
LIVE_METRICS = (*live.RUN, *live.POOLS)
METRICS = tuple(metric for metrics in GROUPS.values() for metric in metrics)
