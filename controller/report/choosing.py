"""Which questions the listening room shows: those that were asked at every stage, a sample that nothing decided, and
those where something went very well, very badly or wrong. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from controller.report.takes import disagrees, faulty

FEW = 8
"""Questions of each kind."""
SAMPLE = 24
"""Questions for the blind test, drawn without a look at them, so that its share speaks for the whole set."""
TRAINING = ""
"""In place of an evaluation set's name: a question of training."""

Rows = Mapping[str, Mapping[str, Mapping]]
"""Rows of `controller.replies.REPLIES` by evaluation set and prompt."""


class Key(NamedTuple):
    """A question."""

    set: str
    id: str


def choose(before: Rows, after: Rows, listened: Sequence[Key], training: Mapping[int, Sequence[Mapping]]) -> list[Key]:
    """The questions, the most wanted first; each once.

    listened: those that were answered between, too. training: replies of training by iteration, newest first.
    """
    found: dict[Key, None] = dict.fromkeys(listened)
    found |= dict.fromkeys(sample(before))
    moved = changes(before, after)
    ranked = sorted(moved, key=lambda key: moved[key])
    found |= dict.fromkeys(key for key in ranked[: -FEW - 1 : -1] if moved[key] > 0)
    found |= dict.fromkeys(key for key in ranked[:FEW] if moved[key] < 0)
    rows = [(Key(name, row["prompt_id"]), row) for of in (after, before) for name in of for row in of[name].values()]
    for wrong in (faulty, disagrees):
        found |= dict.fromkeys(_first((key for key, row in rows if wrong(row)), FEW))
        wanted = (Key(TRAINING, row["prompt_id"]) for part in training.values() for row in part if wrong(row))
        found |= dict.fromkeys(_first(wanted, FEW // 2))
    if not found and training:
        found |= dict.fromkeys(_first((Key(TRAINING, r["prompt_id"]) for r in next(iter(training.values()))), SAMPLE))
    return list(found)


def sample(rows: Rows) -> list[Key]:
    """Questions of the first evaluation set, always the same ones."""
    if not rows:
        return []
    name = next(iter(rows))
    ids = list(rows[name])
    drawn = np.random.default_rng(0).permutation(len(ids))[:SAMPLE]
    return [Key(name, ids[place]) for place in sorted(drawn.tolist())]


def changes(before: Rows, after: Rows) -> dict[Key, float]:
    """By how much the total score rose, of the questions that have one before and after."""
    return {
        Key(name, prompt): row["total"] - before[name][prompt]["total"]
        for name, rows in after.items()
        for prompt, row in rows.items()
        if prompt in before.get(name, {}) and None not in (row["total"], before[name][prompt]["total"])
    }


def _first(keys: Iterable[Key], count: int) -> list[Key]:
    """The first different ones."""
    found: dict[Key, None] = {}
    for key in keys:
        if len(found) == count:
            break
        found[key] = None
    return list(found)
