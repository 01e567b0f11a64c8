"""Specification of a metric: name, labels, meaning and the source of its values. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from cluster.replica_state import ReplicaState
from observability.iteration import PHASES

Seen = TypeVar("Seen")
Reading = Mapping[Any, float | None] | float | None
"""Values by label (by a tuple of labels if the metric has several), or one value for a metric without labels. None
means not measured: the metric then has no sample, rather than a 0."""
Values = dict[tuple[str, ...], float]
"""Values by the tuple of label values."""


@dataclass(frozen=True)
class MetricSpec(Generic[Seen]):
    """Specification of one metric."""

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]
    """Keys of `LABELS`."""
    unit: str
    meaning: str
    read: Callable[[Seen], Reading]
    adds: bool = False
    """For counters: True if `read` returns an increment, False if it returns the total."""

    def values(self, seen: Seen) -> Values:
        reading = self.read(seen)
        by_label = reading.items() if isinstance(reading, Mapping) else [((), reading)]
        return {
            (label,) if isinstance(label, str) else label: float(value)
            for label, value in by_label
            if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    meaning: str
    values: tuple[str, ...] | None = None
    """All allowed values; None if they come from the configuration or from user code."""


PLACES = ("rollout", "reward", "decoder", "learner")
OTHER = "other"
TASK_STATES = ("in_flight", "queued")
ERROR_EVENTS = (
    "actor_died", "learner_died", "task_failed", "sync_interrupted", "waiting_for_resources", "step_skipped",
    "checkpoint_failed", "judge_cache_dropped", "stalled", "request_rejected", "failed",
)  # fmt: skip
"""Kinds of events that report an error (docs/reliability.md)."""
LABELS = {
    "channel": LabelSpec(meaning="stream of the reply's tokens", values=("text", "speech")),
    "function": LabelSpec(
        meaning="reward function of the configuration, or a score combined from several; `total` is the one trained on"
    ),
    "gate": LabelSpec(meaning="gate of λ (docs/training.md)", values=("quality", "information")),
    "kind": LabelSpec(meaning="kind of error event, as in `events.jsonl`", values=ERROR_EVENTS),
    "part": LabelSpec(meaning="part of the loss", values=("total", "preference", "anchor")),
    "phase": LabelSpec(
        meaning="phase of an iteration; other: startup, evaluation, checkpoints, records", values=(*PHASES, OTHER)
    ),
    "reason": LabelSpec(meaning="why a score is missing; each reward function uses a fixed set of reasons"),
    "role": LabelSpec(meaning="role of the pool", values=PLACES),
    "state": LabelSpec(
        meaning="state of a replica (`cluster/replica_state.py`) or of a task (`in_flight`, `queued`)",
        values=(*map(str, ReplicaState), *TASK_STATES),
    ),
    "when": LabelSpec(meaning="the last iteration, or the first of the run", values=("now", "start")),
}
"""All labels. Their values must stay bounded: no prompt, reply, text or worker. `clip_label` bounds the labels that
`LabelSpec.values` leaves open."""
MAX_LABEL_VALUES = 64
"""Maximum number of label values in one metric. A counter adds the values beyond it to "other"."""


def clip_label(values: Values, known: Values, *, add_up: bool) -> Values:
    """Limit the values to `MAX_LABEL_VALUES` labels, the known ones included.

    Args:
        known: values of earlier calls; their labels are kept.
        add_up: True adds the values beyond the limit to "other", as for counters. False drops them.
    """
    kept: Values = {}
    names = set(known)
    for labels, value in values.items():
        if labels not in names and len(names) >= MAX_LABEL_VALUES:
            if not add_up:
                continue
            labels = (OTHER,) * len(labels)
        names.add(labels)
        kept[labels] = kept.get(labels, 0.0) + value
    return kept
