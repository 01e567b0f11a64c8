"""Which questions the listening room shows: those that were asked at every stage, a sample that nothing decided, and
those where something went very well, very badly or wrong. Pure.

The listening room as plain data: the chosen questions, what was answered at every stage, and how that sounds.

One recorded reply as the listening room shows it. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.files import safe_name
from observability.report.audio import ReportAudio
from observability.report.overview import to_json_value
from observability.report.source import ReportSource, RunAssets
from speech.types import Demonstration, Finish, ReplyOrigin
from speech.vocabulary import Channel, Vocabulary

STRIP = {int(channel): channel.name.lower() for channel in Channel}
"""What a run of tokens is called, by the number of its channel."""


HEARD = "heard"
"""The detail in which a rater writes down the words that it heard."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A reply and what is known of it, in terms of JSON; and its tokens, to make its sound of."""

    shown: dict
    token_ids: np.ndarray
    """int32 [T]."""

    @property
    def total(self) -> float | None:
        return self.shown["total"]


def take(row: Mapping, stage: str, label: str, vocabulary: Vocabulary | None, place: str = "") -> Recording:
    """A row of `observability.reply_schema.REPLIES`.

    stage: before, between, after or training. label: the same in words. place: which of several.
    """
    details = {name: value for name, value in row["details"] if value}
    heard = details.get(HEARD)
    ids = np.asarray(row["token_ids"], dtype=np.int32)
    shown = {
        "stage": stage,
        "label": label,
        "place": place,
        "iteration": row["iteration"],
        "version": row["weight_version"],
        "text": row["text"],
        "heard": heard,
        "differs": None if heard is None else differs(row["text"], heard),
        "strip": strip(ids, np.asarray(row["channels"], dtype=np.int8), vocabulary),
        "total": to_json_value(row["total"]),
        "scores": {name: to_json_value(score) for name, score in row["scores"]},
        "missing": dict(row["missing"]),
        "reasons": {n.removesuffix("_reason"): v for n, v in details.items() if n.endswith("_reason")},
        "details": {n: v for n, v in details.items() if n not in ("text", HEARD) and not n.endswith("_reason")},
        "defect": row["defect"],
        "unfinished": row["finish"] != Finish.STOP,
        "use": row["use"],
        "worker": row["worker"],
    }
    return Recording(shown=shown, token_ids=ids)


def demonstrated(one: Demonstration, vocabulary: Vocabulary) -> Recording:
    """A demonstration, which nobody sampled and nobody rated."""
    ids = np.asarray(one.reply_ids, dtype=np.int32)
    shown = {"stage": "demonstration", "label": "Demonstration", "text": one.text, "total": None}
    return Recording(shown=shown | {"strip": strip(ids, vocabulary.channels(ids), vocabulary)}, token_ids=ids)


def faulty(row: Mapping) -> bool:
    """Whether a reply is malformed or cut off."""
    return row["defect"] is not None or row["finish"] != Finish.STOP


def disagrees(row: Mapping) -> bool:
    """Whether a listener wrote down other words than the reply's text has."""
    heard = dict(row["details"]).get(HEARD)
    return heard is not None and differs(row["text"], heard)


def differs(said: str, heard: str) -> bool:
    return said.lower().split() != heard.lower().split()


def strip(ids: np.ndarray, channels: np.ndarray, vocabulary: Vocabulary | None) -> list[list]:
    """The tokens in order, as runs of one channel: [channel, tokens, the words if they are text]. Blanks, which only
    keep a stream's place, are left out."""
    if vocabulary is not None and vocabulary.blank is not None:
        ids, channels = ids[ids != vocabulary.blank], channels[ids != vocabulary.blank]
    edges = np.flatnonzero(np.diff(channels)) + 1
    runs = []
    for part, own in zip(np.split(ids, edges), np.split(channels, edges), strict=True):
        if len(own):
            kind = STRIP.get(int(own[0]), "foreign")
            said = vocabulary.text(part).strip() if vocabulary is not None and kind == "text" else ""
            runs.append([kind, len(own), said])
    return runs


FEW = 8
"""Questions of each kind."""


SAMPLE = 24
"""Questions for the blind test, drawn without a look at them, so that its share speaks for the whole set."""


TRAINING = ""
"""In place of an evaluation set's name: a question of training."""


Rows = Mapping[str, Mapping[str, Mapping]]
"""Rows of `observability.reply_schema.REPLIES` by evaluation set and prompt."""


class RecordingKey(NamedTuple):
    """A question."""

    set: str
    id: str


def choose_prompts(
    before: Rows, after: Rows, listened: Sequence[RecordingKey], training: Mapping[int, Sequence[Mapping]]
) -> list[RecordingKey]:
    """The questions, the most wanted first; each once.

    listened: those that were answered between, too. training: replies of training by iteration, newest first.
    """
    found: dict[RecordingKey, None] = dict.fromkeys(listened)
    found |= dict.fromkeys(sample(before))
    moved = changes(before, after)
    ranked = sorted(moved, key=lambda key: moved[key])
    found |= dict.fromkeys(key for key in ranked[: -FEW - 1 : -1] if moved[key] > 0)
    found |= dict.fromkeys(key for key in ranked[:FEW] if moved[key] < 0)
    rows = [
        (RecordingKey(name, row["prompt_id"]), row)
        for of in (after, before)
        for name in of
        for row in of[name].values()
    ]
    for wrong in (faulty, disagrees):
        found |= dict.fromkeys(_first((key for key, row in rows if wrong(row)), FEW))
        wanted = (RecordingKey(TRAINING, row["prompt_id"]) for part in training.values() for row in part if wrong(row))
        found |= dict.fromkeys(_first(wanted, FEW // 2))
    if not found and training:
        found |= dict.fromkeys(
            _first((RecordingKey(TRAINING, r["prompt_id"]) for r in next(iter(training.values()))), SAMPLE)
        )
    return list(found)


def sample(rows: Rows) -> list[RecordingKey]:
    """Questions of the first evaluation set, always the same ones."""
    if not rows:
        return []
    name = next(iter(rows))
    ids = list(rows[name])
    drawn = np.random.default_rng(0).permutation(len(ids))[:SAMPLE]
    return [RecordingKey(name, ids[place]) for place in sorted(drawn.tolist())]


def changes(before: Rows, after: Rows) -> dict[RecordingKey, float]:
    """By how much the total score rose, of the questions that have one before and after."""
    return {
        RecordingKey(name, prompt): row["total"] - before[name][prompt]["total"]
        for name, rows in after.items()
        for prompt, row in rows.items()
        if prompt in before.get(name, {}) and None not in (row["total"], before[name][prompt]["total"])
    }


def _first(keys: Iterable[RecordingKey], count: int) -> list[RecordingKey]:
    """The first different ones."""
    found: dict[RecordingKey, None] = {}
    for key in keys:
        if len(found) == count:
            break
        found[key] = None
    return list(found)


BUDGET = 11_000_000
"""Characters of a page that sounds may take."""


SCANNED = 100
"""The newest iterations whose replies are looked through."""


GROUPS = 2
"""Times that a question was trained on that are shown."""


LOOKED_AT = ["prompt_id", "worker", "text", "finish", "defect", "details"]


@dataclass(frozen=True, kw_only=True)
class RecordedReply:
    """Everything that a run's replies are chosen from."""

    before: Rows
    after: Rows
    listening: Mapping[int, Mapping[str, Mapping]]
    """By iteration and prompt."""
    training: Mapping[int, pa.Table]
    """By iteration, newest first."""

    @classmethod
    def of(cls, source: ReportSource, evaluations: Mapping[str, Mapping[str, pa.Table]]) -> "RecordedReply":
        """evaluations: by "before" and "after", and the set's name."""
        sets = {when: {n: _by_prompt(table) for n, table in found.items()} for when, found in evaluations.items()}
        listening = {n: _by_prompt(table) for n, table in source.numbered("listening").items()}
        training = source.numbered("replies", newest=SCANNED)
        return cls(before=sets["before"], after=sets["after"], listening=listening, training=training)

    @property
    def last(self) -> int | None:
        """The iteration after which it was evaluated for the last time."""
        return next((row["iteration"] for rows in self.after.values() for row in rows.values()), None)

    def chosen(self) -> list[RecordingKey]:
        headline = next(iter(self.before), TRAINING)
        held_out = self.before.get(headline, {})
        ids = dict.fromkeys(prompt for rows in self.listening.values() for prompt in rows)
        keys = (RecordingKey(headline if prompt in held_out else TRAINING, prompt) for prompt in ids)
        listened = sorted(keys, key=lambda key: key.set == TRAINING)
        looked = {
            number: [row for row in table.select(LOOKED_AT).to_pylist() if row["worker"] != ReplyOrigin.DEMONSTRATION]
            for number, table in self.training.items()
        }
        return choose_prompts(self.before, self.after, listened, looked)

    def takes(self, key: RecordingKey, world: RunAssets) -> list[Recording]:
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

    def _trained(self, prompt: str, world: RunAssets) -> list[Recording]:
        found: list[list[Recording]] = []
        for number, table in self.training.items():
            rows = table.filter(pc.equal(table["prompt_id"], prompt)).to_pylist()
            sampled = [row for row in rows if row["worker"] != ReplyOrigin.DEMONSTRATION]
            label, last = f"Training, iteration {number}", len(sampled)
            group = [
                take(row, "training", label, world.vocabulary, f"reply {place} of {last}")
                for place, row in enumerate(sampled, start=1)
            ]
            found = [group, *found] if group and len(found) < GROUPS else found
        return [one for group in found for one in group]


class ListeningReply(NamedTuple):
    """Something to be heard."""

    shown: dict
    """Where its sound is written down."""
    token_ids: np.ndarray | None
    recording: Path | None = None
    """Where the run may have written it as a file."""


def build(
    source: ReportSource, evaluations: Mapping[str, Mapping[str, pa.Table]], sounds: ReportAudio
) -> tuple[dict, dict]:
    """The room, and its sounds by key."""
    world, recorded = source.world, RecordedReply.of(source, evaluations)
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


def _prompt(
    key: RecordingKey, recorded: RecordedReply, world: RunAssets, audio: Path
) -> tuple[dict, list[ListeningReply]]:
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
        "change": to_json_value(change),
        "tags": _tags(takes, change),
    }
    spoken = [ListeningReply(question, prompt.token_ids if prompt else None, recording["question"])]
    spoken += [ListeningReply(demonstration.shown, demonstration.token_ids)] if demonstration else []
    spoken += [ListeningReply(one.shown, one.token_ids, recording.get(one.shown["stage"])) for one in takes]
    return found, spoken


def _tags(takes: Sequence[Recording], change: float | None) -> list[str]:
    """What a reader can filter by."""
    tags = {
        "gain": change is not None and change > 0,
        "loss": change is not None and change < 0,
        "malformed": any(one.shown["defect"] or one.shown["unfinished"] for one in takes),
        "disagreement": any(one.shown["differs"] for one in takes),
        "stages": any(one.shown["stage"] == "between" for one in takes),
    }
    return [name for name, true in tags.items() if true]


def _voice(prompts: Sequence[dict], replies: Sequence[list[ListeningReply]], sounds: ReportAudio) -> tuple[dict, int]:
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
