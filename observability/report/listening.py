"""Listening room of a report as plain data: selected prompts, their replies at every stage, and the audio.

The prompts are those sampled at every stage, a random sample, the largest changes of the score and malformed replies.
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
"""Names of the channels by number."""


HEARD = "heard"
"""Name of the detail that holds the transcript of a reward function."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A reply as JSON data, and its tokens for the audio."""

    shown: dict
    token_ids: np.ndarray
    """int32 [T]."""

    @property
    def total(self) -> float | None:
        return self.shown["total"]


def take(row: Mapping, stage: str, label: str, vocabulary: Vocabulary | None, place: str = "") -> Recording:
    """Convert a row of `observability.reply_schema.REPLIES`.

    Args:
        stage: before, between, after or training.
        label: caption of the stage.
        place: position in the group, such as "reply 1 of 4".
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


def demonstration_take(one: Demonstration, vocabulary: Vocabulary) -> Recording:
    """Convert a demonstration, which has no worker and no scores."""
    ids = np.asarray(one.reply_ids, dtype=np.int32)
    shown = {"stage": "demonstration", "label": "Demonstration", "text": one.text, "total": None}
    return Recording(shown=shown | {"strip": strip(ids, vocabulary.channels(ids), vocabulary)}, token_ids=ids)


def is_malformed(row: Mapping) -> bool:
    """Return True if a reply is malformed or truncated."""
    return row["defect"] is not None or row["finish"] != Finish.STOP


def disagrees(row: Mapping) -> bool:
    """Return True if the transcript differs from the reply's text."""
    heard = dict(row["details"]).get(HEARD)
    return heard is not None and differs(row["text"], heard)


def differs(said: str, heard: str) -> bool:
    return said.lower().split() != heard.lower().split()


def strip(ids: np.ndarray, channels: np.ndarray, vocabulary: Vocabulary | None) -> list[list]:
    """Return the tokens as runs of one channel: [channel, number of tokens, text].

    Blanks, which only pad a stream, are left out.
    """
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


MAX_PER_KIND = 8
"""Maximum number of prompts of each kind."""


SAMPLE_SIZE = 24
"""Number of prompts for the blind test: a random sample, so that its result holds for the whole set."""


TRAINING = ""
"""Set name of training prompts."""


Rows = Mapping[str, Mapping[str, Mapping]]
"""Rows of `observability.reply_schema.REPLIES` by evaluation set and prompt."""


class RecordingKey(NamedTuple):
    """Evaluation set and id of a prompt."""

    set: str
    id: str


def choose_prompts(
    before: Rows, after: Rows, listened: Sequence[RecordingKey], training: Mapping[int, Sequence[Mapping]]
) -> list[RecordingKey]:
    """Return the selected prompts, most important first, without duplicates.

    Args:
        listened: prompts sampled at every stage.
        training: training replies by iteration, newest first.
    """
    found: dict[RecordingKey, None] = dict.fromkeys(listened)
    found |= dict.fromkeys(sample(before))
    moved = changes(before, after)
    ranked = sorted(moved, key=lambda key: moved[key])
    found |= dict.fromkeys(key for key in ranked[: -MAX_PER_KIND - 1 : -1] if moved[key] > 0)
    found |= dict.fromkeys(key for key in ranked[:MAX_PER_KIND] if moved[key] < 0)
    rows = [
        (RecordingKey(name, row["prompt_id"]), row)
        for of in (after, before)
        for name in of
        for row in of[name].values()
    ]
    for wrong in (is_malformed, disagrees):
        found |= dict.fromkeys(_first((key for key, row in rows if wrong(row)), MAX_PER_KIND))
        wanted = (RecordingKey(TRAINING, row["prompt_id"]) for part in training.values() for row in part if wrong(row))
        found |= dict.fromkeys(_first(wanted, MAX_PER_KIND // 2))
    if not found and training:
        found |= dict.fromkeys(
            _first((RecordingKey(TRAINING, r["prompt_id"]) for r in next(iter(training.values()))), SAMPLE_SIZE)
        )
    return list(found)


def sample(rows: Rows) -> list[RecordingKey]:
    """Return a fixed random sample of the first evaluation set."""
    if not rows:
        return []
    name = next(iter(rows))
    ids = list(rows[name])
    drawn = np.random.default_rng(0).permutation(len(ids))[:SAMPLE_SIZE]
    return [RecordingKey(name, ids[place]) for place in sorted(drawn.tolist())]


def changes(before: Rows, after: Rows) -> dict[RecordingKey, float]:
    """Return the change of the total score for the prompts scored before and after."""
    return {
        RecordingKey(name, prompt): row["total"] - before[name][prompt]["total"]
        for name, rows in after.items()
        for prompt, row in rows.items()
        if prompt in before.get(name, {}) and None not in (row["total"], before[name][prompt]["total"])
    }


def _first(keys: Iterable[RecordingKey], count: int) -> list[RecordingKey]:
    """Return the first `count` distinct keys."""
    found: dict[RecordingKey, None] = {}
    for key in keys:
        if len(found) == count:
            break
        found[key] = None
    return list(found)


MAX_AUDIO_CHARS = 11_000_000
"""Maximum size of the audio in a page, in base64 characters."""


MAX_ITERATIONS = 100
"""Number of newest iterations searched for replies."""


MAX_TRAINING_GROUPS = 2
"""Maximum number of training groups shown per prompt."""


COLUMNS = ["prompt_id", "worker", "text", "finish", "defect", "details"]


@dataclass(frozen=True, kw_only=True)
class RecordedReply:
    """All replies of a run that the selection is made from."""

    before: Rows
    after: Rows
    listening: Mapping[int, Mapping[str, Mapping]]
    """Replies by iteration and prompt."""
    training: Mapping[int, pa.Table]
    """Replies by iteration, newest first."""

    @classmethod
    def of(cls, source: ReportSource, evaluations: Mapping[str, Mapping[str, pa.Table]]) -> "RecordedReply":
        """Read the replies. `evaluations` are by "before" or "after" and set name."""
        sets = {when: {n: _by_prompt(table) for n, table in found.items()} for when, found in evaluations.items()}
        listening = {n: _by_prompt(table) for n, table in source.numbered("listening").items()}
        training = source.numbered("replies", newest=MAX_ITERATIONS)
        return cls(before=sets["before"], after=sets["after"], listening=listening, training=training)

    @property
    def last(self) -> int | None:
        """Iteration of the last evaluation."""
        return next((row["iteration"] for rows in self.after.values() for row in rows.values()), None)

    def chosen(self) -> list[RecordingKey]:
        headline = next(iter(self.before), TRAINING)
        held_out = self.before.get(headline, {})
        ids = dict.fromkeys(prompt for rows in self.listening.values() for prompt in rows)
        keys = (RecordingKey(headline if prompt in held_out else TRAINING, prompt) for prompt in ids)
        listened = sorted(keys, key=lambda key: key.set == TRAINING)
        looked = {
            number: [row for row in table.select(COLUMNS).to_pylist() if row["worker"] != ReplyOrigin.DEMONSTRATION]
            for number, table in self.training.items()
        }
        return choose_prompts(self.before, self.after, listened, looked)

    def takes(self, key: RecordingKey, world: RunAssets) -> list[Recording]:
        """Return all replies to a prompt, in the order of the weight versions."""
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
            found = [group, *found] if group and len(found) < MAX_TRAINING_GROUPS else found
        return [one for group in found for one in group]


class ListeningReply(NamedTuple):
    """A reply or prompt with audio."""

    shown: dict
    """JSON data that receives the key of the clip."""
    token_ids: np.ndarray | None
    recording: Path | None = None
    """File that the run may have written for it."""


def build(
    source: ReportSource, evaluations: Mapping[str, Mapping[str, pa.Table]], sounds: ReportAudio
) -> tuple[dict, dict]:
    """Return the listening room and its clips by key."""
    world, recorded = source.world, RecordedReply.of(source, evaluations)
    drawn = set(sample(recorded.before))
    prompts, replies = [], []
    for key in recorded.chosen():
        shown, spoken = _prompt(key, recorded, world, source.directory / "audio")
        shown["tags"] += ["sample"] if key in drawn else []
        prompts.append(shown)
        replies.append(spoken)
    clips, quiet = _voice(prompts, replies, sounds)
    lacks = [*world.lacks, *([f"Audio is not available: {sounds.lack}."] if sounds.lack else [])]
    if quiet:
        lacks.append(f"The audio of {quiet} of the {len(prompts)} prompts does not fit in the page.")
    evaluated = sum(len(rows) for rows in recorded.before.values())
    return {"prompts": prompts, "evaluated": evaluated, "lacks": lacks}, clips


def _prompt(
    key: RecordingKey, recorded: RecordedReply, world: RunAssets, audio: Path
) -> tuple[dict, list[ListeningReply]]:
    """Return a prompt as JSON data, and its parts with audio. `audio` is the directory of the run's recordings."""
    prompt, shown = world.prompts.get(key.id), world.demonstrations.get(key.id)
    takes = recorded.takes(key, world)
    demonstration = demonstration_take(shown, world.vocabulary) if shown is not None and world.vocabulary else None
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
    """Return the filter tags of a prompt."""
    tags = {
        "gain": change is not None and change > 0,
        "loss": change is not None and change < 0,
        "malformed": any(one.shown["defect"] or one.shown["unfinished"] for one in takes),
        "disagreement": any(one.shown["differs"] for one in takes),
        "stages": any(one.shown["stage"] == "between" for one in takes),
    }
    return [name for name, true in tags.items() if true]


def _voice(prompts: Sequence[dict], replies: Sequence[list[ListeningReply]], sounds: ReportAudio) -> tuple[dict, int]:
    """Attach audio clips within the budget. Return the clips and the number of prompts without audio."""
    form = sounds.form(
        [one.token_ids for spoken in replies for one in spoken if one.token_ids is not None], MAX_AUDIO_CHARS
    )
    clips: dict[str, dict] = {}
    used, quiet = 0, 0
    for prompt, spoken in zip(prompts, replies, strict=True):
        made = [None if used > MAX_AUDIO_CHARS else sounds.sound(one.token_ids, one.recording, form) for one in spoken]
        new = {one["key"]: one for one in made if one and "content" in one and one["key"] not in clips}
        used += sum(len(one["content"]) for one in new.values())
        if used > MAX_AUDIO_CHARS:
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
