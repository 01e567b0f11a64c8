"""The one table of metrics: for the endpoint, the dashboards and the documentation."""

from typing import Any

from controller.metrics import iterations, state
from controller.metrics.metric import Metric

GROUPS: dict[str, tuple[Metric[Any], ...]] = {
    "Run": state.RUN,
    "Training": iterations.TRAINING,
    "Speech": iterations.SPEECH,
    "Pools": state.POOLS,
    "Work": iterations.WORK,
    "Judges": iterations.JUDGES,
}
"""By heading."""
OF_ITERATIONS = (*iterations.TRAINING, *iterations.SPEECH, *iterations.WORK, *iterations.JUDGES)
OF_STATE = (*state.RUN, *state.POOLS)
METRICS = tuple(metric for metrics in GROUPS.values() for metric in metrics)
