"""The listening room as plain data: the chosen questions, what was answered at every stage, and how that sounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from controller.preference import DEMONSTRATION
from controller.report.choosing import TRAINING, Key, Rows, choose, sample
from controller.report.overview import plain
from controller.report.sounds import Sounds
from controller.report.source import Source, World
from controller.report.takes import Take, demonstrated, take
from speech.paths import safe_name

BUDGET = 11_000_000
"""Characters of a page that sounds may take."""
SCANNED = 100
"""The newest iterations whose replies are looked through."""
GROUPS = 2
"""Times that a question was trained on that are shown."""
LOOKED_AT = ["prompt_id", "worker", "text", "finish", "defect", "details"]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Everything that a run's replies are chosen from."""

    before: Rows
    after: Rows
    listening: Mapping[int, Mapping[str, Mapping]]
    """By iteration and prompt."""
    training: Mapping[int, pa.Table]
    """By iteration, newest first."""

    @classmethod
    def of(cls, source: Source, evaluations: Mapping[str, Mapping[str, pa.Table]]) -> "Recorded":
        """evaluations: by "before" and "after", and the set's name."""
        sets = {when: {n: _by_prompt(table) for n, table in found.items()} for when, found in evaluations.items()}
        listening = {n: _by_prompt(table) for n, table in source.numbered("listening").items()}
        training = source.numbered("replies", newest=SCANNED)
        return cls(before=sets["before"], after=sets["after"], listening=listening, training=training)

    @property
    def last(self) -> int | None:
        """The iteration after which it was evaluated for the last time."""
        return next((row["iteration"] for rows in self.after.values() for row in rows.values()), None)

    def chosen(self) -> list[Key]:
        headline = next(iter(self.before), TRAINING)
        held_out = self.before.get(headline, {})
        ids = dict.fromkeys(prompt for rows in self.listening.values() for prompt in rows)
        keys = (Key(headline if prompt in held_out else TRAINING, prompt) for prompt in ids)
        listened = sorted(keys, key=lambda key: key.set == TRAINING)
        looked = {
            number: [row for row in table.select(LOOKED_AT).to_pylist() if row["worker"] != DEMONSTRATION]
            for number, table in self.training.items()
        }
        return choose(self.before, self.after, listened, looked)

    def takes(self, key: Key, world: World) -> list[Take]:
        """What was answered to a question, in the order of the weights."""
        stages = [(n, rows[key.id]) for n, rows in self.listening.items() if key.id in rows]
        found = [
            take(rows[key.set][key.id], when, when.capitalize(), world.vocabulary)
            for when, rows in (("before", self.before), ("after", self.after))
            if key.id in rows.get(key.set, {})
        ]
        known = {one.shown["iteration"] for one in found}
        for number, row in stages:
            if number not in known:
                when = "before" if number == 0 else "after" if number == self.last else "between"
                label = f"Iteration {number}" if when == "between" else when.capitalize()
                found.append(take(row, when, label, world.vocabulary))
        found.sort(key=lambda one: one.shown["iteration"])
        return found + (self._trained(key.id, world) if key.set == TRAINING else [])

    def _trained(self, prompt: str, world: World) -> list[Take]:
        found: list[list[Take]] = []
        for number, table in self.training.items():
            rows = table.filter(pc.equal(table["prompt_id"], prompt)).to_pylist()
            sampled = [row for row in rows if row["worker"] != DEMONSTRATION]
            label, last = f"Training, iteration {number}", len(sampled)
            group = [
                take(row, "training", label, world.vocabulary, f"reply {place} of {last}")
                for place, row in enumerate(sampled, start=1)
            ]
            found = [group, *found] if group and len(found) < GROUPS else found
        return [one for group in found for one in group]


class Spoken(NamedTuple):
    """Something to be heard."""

    shown: dict
    """Where its sound is written down."""
    token_ids: np.ndarray | None
    recording: Path | None = None
    """Where the run may have written it as a file."""


def build(source: Source, evaluations: Mapping[str, Mapping[str, pa.Table]], sounds: Sounds) -> tuple[dict, dict]:
    """The room, and its sounds by key."""
    world, recorded = source.world, Recorded.of(source, evaluations)
    drawn = set(sample(recorded.before))
    prompts, replies = [], []
    for key in recorded.chosen():
        shown, spoken = _prompt(key, recorded, world, source.directory / "audio")
        shown["tags"] += ["sample"] if key in drawn else []
        prompts.append(shown)
        replies.append(spoken)
    clips, quiet = _voice(prompts, replies, sounds)
    lacks = [*world.lacks, *([f"There is no sound: {sounds.lack}."] if sounds.lack else [])]
    if quiet:
        lacks.append(f"The sounds of {quiet} of the {len(prompts)} questions would not fit on a page of this size.")
    evaluated = sum(len(rows) for rows in recorded.before.values())
    return {"prompts": prompts, "evaluated": evaluated, "lacks": lacks}, clips


def _prompt(key: Key, recorded: Recorded, world: World, audio: Path) -> tuple[dict, list[Spoken]]:
    """A question in terms of JSON, and what of it is to be heard. audio: the run's own recordings."""
    prompt, shown = world.prompts.get(key.id), world.demonstrations.get(key.id)
    takes = recorded.takes(key, world)
    demonstration = demonstrated(shown, world.vocabulary) if shown is not None and world.vocabulary else None
    totals = [one.total for one in takes if one.shown["stage"] != "training"]
    first, last = (totals[0], totals[-1]) if len(totals) > 1 else (None, None)
    change = last - first if first is not None and last is not None else None
    question: dict = {}
    stem = audio / safe_name(key.id)
    recording = {when: stem.with_name(f"{stem.name}-{when}.wav") for when in ("question", "before", "after")}
    found = {
        "id": key.id,
        "set": key.set,
        "text": prompt.text if prompt else "",
        "facts": prompt.facts if prompt else {},
        "question": question,
        "demonstration": demonstration.shown if demonstration else None,
        "takes": [one.shown for one in takes],
        "change": plain(change),
        "tags": _tags(takes, change),
    }
    spoken = [Spoken(question, prompt.token_ids if prompt else None, recording["question"])]
    spoken += [Spoken(demonstration.shown, demonstration.token_ids)] if demonstration else []
    spoken += [Spoken(one.shown, one.token_ids, recording.get(one.shown["stage"])) for one in takes]
    return found, spoken


def _tags(takes: Sequence[Take], change: float | None) -> list[str]:
    """What a reader can filter by."""
    tags = {
        "gain": change is not None and change > 0,
        "loss": change is not None and change < 0,
        "malformed": any(one.shown["defect"] or one.shown["unfinished"] for one in takes),
        "disagreement": any(one.shown["differs"] for one in takes),
        "stages": any(one.shown["stage"] == "between" for one in takes),
    }
    return [name for name, true in tags.items() if true]


def _voice(prompts: Sequence[dict], replies: Sequence[list[Spoken]], sounds: Sounds) -> tuple[dict, int]:
    """Gives everything its sound, as long as there is room. Returns the sounds, and how many questions got none."""
    form = sounds.form([one.token_ids for spoken in replies for one in spoken if one.token_ids is not None], BUDGET)
    clips: dict[str, dict] = {}
    used, quiet = 0, 0
    for prompt, spoken in zip(prompts, replies, strict=True):
        made = [None if used > BUDGET else sounds.sound(one.token_ids, one.recording, form) for one in spoken]
        new = {one["key"]: one for one in made if one and "content" in one and one["key"] not in clips}
        used += sum(len(one["content"]) for one in new.values())
        if used > BUDGET:
            quiet += 1
            prompt["quiet"] = True
            continue
        clips |= {key: {name: one[name] for name in one if name != "key"} | {"form": form} for key, one in new.items()}
        for place, one in zip(spoken, made, strict=True):
            if one is not None:
                place.shown["sound"] = one["key"] if "content" in one else None
                place.shown["silence"] = one.get("lack")
    return clips, quiet


def _by_prompt(table: pa.Table) -> dict[str, dict]:
    return {row["prompt_id"]: row for row in table.to_pylist()}
