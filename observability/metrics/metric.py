"""What a metric is: how it is called, what it means, where its values come from. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from cluster.replica_state import ReplicaState
from observability.iteration import PHASES

Seen = TypeVar("Seen")
Reading = Mapping[Any, float | None] | float | None
"""A value by label (by labels, where there are several), or one value for a metric without a label. None where there
is no number: then there is no sample. A scrape never shows a 0 that nobody measured."""
Values = dict[tuple[str, ...], float]
"""By the values of the labels."""


@dataclass(frozen=True)
class MetricSpec(Generic[Seen]):
    """One metric."""

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]
    """Keys of `LABELS`."""
    unit: str
    meaning: str
    read: Callable[[Seen], Reading]
    adds: bool = False
    """Of a counter: whether `read` gives what is to be added, and not the whole."""

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
    """All that it can have; None for those that come with the configuration or with raters of somebody's own."""


PLACES = ("rollout", "reward", "decoder", "learner")
OTHER = "other"
FAULTS = (
    "actor_died", "learner_died", "task_failed", "sync_interrupted", "waiting_for_resources", "step_skipped",
    "checkpoint_failed", "judge_cache_dropped", "stalled", "request_rejected", "failed",
)  # fmt: skip
"""Kinds of events that say that something is not as it should be (docs/reliability.md)."""
LABELS = {
    "channel": LabelSpec(meaning="of the reply's tokens", values=("text", "speech")),
    "gate": LabelSpec(meaning="of λ (docs/training.md)", values=("quality", "information")),
    "kind": LabelSpec(meaning="of a fault, as in `events.jsonl`", values=FAULTS),
    "part": LabelSpec(meaning="of the loss", values=("total", "preference", "anchor")),
    "phase": LabelSpec(
        meaning="of an iteration; other: the start, evaluation, checkpoints, records", values=(*PHASES, OTHER)
    ),
    "rater": LabelSpec(
        meaning="a rater of the configuration, or a score combined from several; `total` is what trains"
    ),
    "reason": LabelSpec(meaning="why a score is missing, in a rater's few fixed words"),
    "role": LabelSpec(meaning="of a member", values=PLACES),
    "state": LabelSpec(
        meaning="of a member's life (`cluster/replica_state.py`)", values=tuple(str(life) for life in ReplicaState)
    ),
    "when": LabelSpec(meaning="the last iteration, or the first of the run", values=("now", "start")),
    "work": LabelSpec(meaning="lent: in a member's hands; waiting: with nobody yet", values=("lent", "waiting")),
}
"""Every label, so that nobody invents one whose values grow without end: no prompt, no reply, no text, no worker. What
`LabelSpec.values` does not bound, `clip_label` does."""
MOST_VALUES = 64
"""Of a label, in one metric; of a counter, what comes after them is under "other"."""


def clip_label(values: Values, known: Values, *, add_up: bool) -> Values:
    """The values under no more than `MOST_VALUES` labels and "other", those included that are known already. add_up:
    whether the rest can be added up, as that of counters can; if not, it is left out."""
    kept: Values = {}
    names = set(known)
    for labels, value in values.items():
        if labels not in names and len(names) >= MOST_VALUES:
            if not add_up:
                continue
            labels = (OTHER,) * len(labels)
        names.add(labels)
        kept[labels] = kept.get(labels, 0.0) + value
    return kept
