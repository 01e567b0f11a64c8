"""From dialogues to rows of token ids: recordings through the codec, turns through the family. Pure, but for files."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from data.dialogues import Dialogue, DialogueTurn, scan_slice
from data.prepare.chat_format import chat_prompt, chat_reply
from data.records import DEMONSTRATIONS, PAIRS, PROMPTS
from data.records import FEATURES as HEARD
from data.slices import FileSlice
from speech.audio import Waveform, write_features
from speech.codecs.base import Codec, SpeechEncoder
from speech.families import Family
from speech.grammar import Grammar, check_reply_grammar
from speech.types import Turn
from speech.vocabulary import Vocabulary

SCHEMAS = {
    "prompts": PROMPTS.append(HEARD), "demonstrations": DEMONSTRATIONS.append(HEARD), "pairs": PAIRS.append(HEARD)
}  # fmt: skip
"""Folders of prepared data, and what is in them."""
FEATURES = "features"
"""The folder of what a speech encoder heard, a file for each dialogue."""
GROUP = 256
"""Rows of a row group: as many are decoded to pick one (`data.dataset`)."""


class RowRefused(Exception):
    """A row that cannot be used. reason: a word or two, to be counted by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """Everything that is needed to make ids of dialogues."""

    family: Family
    vocabulary: Vocabulary
    codec: Codec
    structure: tuple[Grammar, np.ndarray]
    """The family's pattern, and the kinds of all ids."""
    longest_prompt: int
    longest: int
    """Of prompt and reply together."""
    hearing: SpeechEncoder | None = None
    """None: the family hears codes."""
    features: Path = Path(FEATURES)
    """Where it writes what it hears."""

    def rows(self, place: str, dialogue: Dialogue) -> dict[str, dict[str, Any]]:
        """The row of each folder that a dialogue makes. Raises Refused."""
        known: dict[Path, np.ndarray] = {}
        heard: list[np.ndarray] = []
        turns = [self._turn(place, message.role, message.said, known, heard) for message in dialogue.messages]
        try:
            asked = chat_prompt(self.family, turns, self.vocabulary)
        except InputError as error:
            raise RowRefused("prompt not spelt", f"{place}: {error}") from error
        if len(asked) > self.longest_prompt:
            raise RowRefused("prompt too long", f"{place}: the prompt has {len(asked)} tokens, room is for fewer")
        features = self._keep(dialogue, heard) if heard else None
        found: dict[str, dict[str, Any]] = {
            "prompts": {
                "id": dialogue.id, "token_ids": asked, "text": dialogue.question, "facts": dialogue.facts,
                "features": features,
            }
        }  # fmt: skip
        if dialogue.target is None:
            return found
        target = self._reply(place, dialogue.target, asked, known)
        found["demonstrations"] = {
            "prompt_id": dialogue.id, "prompt_ids": asked, "reply_ids": target, "text": dialogue.target.text or "",
            "manner": "", "features": features,
        }  # fmt: skip
        if dialogue.rejected is not None:
            rejected = self._reply(place, dialogue.rejected, asked, known)
            if np.array_equal(target, rejected):
                raise RowRefused("pair of one reply", f"{place}: the rejected reply has the same tokens as the target")
            found["pairs"] = {
                "prompt_id": dialogue.id, "prompt_ids": asked, "chosen_ids": target, "rejected_ids": rejected,
                "chosen_score": dialogue.chosen_score, "rejected_score": dialogue.rejected_score, "scores_chosen": {},
                "scores_rejected": {}, "origin": place, "features": features,
            }  # fmt: skip
        return found

    def _keep(self, dialogue: Dialogue, heard: list[np.ndarray]) -> str:
        """Writes the frames of all turns, one after another. Returns the file's name as rows have it."""
        name = hashlib.sha256(dialogue.id.encode()).hexdigest()[:32] + ".npy"
        write_features(self.features / name, np.concatenate(heard))
        return f"../{FEATURES}/{name}"

    def _turn(
        self, place: str, role: str, said: DialogueTurn, known: dict[Path, np.ndarray], heard: list[np.ndarray]
    ) -> Turn:
        """heard: takes the frames of a turn that the speech encoder hears."""
        if self.hearing is not None and role != "assistant" and said.recordings:
            frames = [self._frames(place, path) for path in said.recordings]
            heard += frames
            return Turn(role=role, text=said.text, features=sum(map(len, frames)))
        codes = [self._codes(place, path, known) for path in said.recordings]
        return Turn(role=role, text=said.text, codes=np.concatenate(codes) if codes else None)

    def _reply(self, place: str, said: DialogueTurn, asked: np.ndarray, known: dict[Path, np.ndarray]) -> np.ndarray:
        turn = self._turn(place, "assistant", said, known, [])
        try:
            ids = chat_reply(self.family, turn.text, turn.codes, self.vocabulary)
        except InputError as error:
            raise RowRefused("reply not spelt", f"{place}: {error}") from error
        if (defect := check_reply_grammar(ids, *self.structure)) is not None:
            raise RowRefused("reply malformed", f"{place}: the reply does not follow the family's structure: {defect}")
        if len(asked) + len(ids) > self.longest:
            raise RowRefused(
                "reply too long", f"{place}: prompt and reply have {len(asked) + len(ids)} tokens together"
            )
        return ids

    def _sound(self, place: str, path: Path) -> Waveform:
        if not path.is_file():
            raise RowRefused("recording missing", f"{place}: {path} does not exist")
        try:
            return Waveform.read(path)
        except (OSError, RuntimeError, ValueError) as error:  # libsndfile's own error is a RuntimeError
            raise RowRefused("recording unreadable", f"{place}: {path}: {error}") from error

    def _frames(self, place: str, path: Path) -> np.ndarray:
        assert self.hearing is not None
        sound = self._sound(place, path)
        try:
            frames = np.asarray(self.hearing.encode(sound))
        except Exception as error:  # an encoder of the user's own may raise anything
            raise RowRefused("recording not heard", f"{place}: {path}: {error!r}") from error
        if frames.ndim != 2 or not len(frames) or frames.dtype.kind != "f":
            raise RowRefused("recording not heard", f"{place}: {path}: the encoder gives no frames, float [F, W]")
        return frames

    def _codes(self, place: str, path: Path, known: dict[Path, np.ndarray]) -> np.ndarray:
        if path not in known:
            sound = self._sound(place, path)
            try:
                codes = np.asarray(self.codec.encode(sound))
            except Exception as error:  # a codec of the user's own may raise anything
                raise RowRefused("recording not encoded", f"{place}: {path}: {error!r}") from error
            if codes.ndim != 1 or not len(codes) or codes.min() < 0 or codes.max() >= self.codec.codebook:
                raise RowRefused("recording not encoded", f"{place}: {path}: the codec gives no codes of its codebook")
            known[path] = codes
        return known[path]


@dataclass(kw_only=True)
class EncodeResult:
    """What became of a slice."""

    rows: int = 0
    written: Counter[str] = field(default_factory=Counter)
    """Rows by folder."""
    refused: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    recordings: str = ""
    """Mark of the sound files."""


def encode(encoder: Encoder, piece: FileSlice, root: Path | None, folder: Path, number: int) -> EncodeResult:
    """Writes the rows that a slice makes: folder/prompts/part-NUMBER.parquet and so on, and folder/refused/. What was
    there is replaced."""
    outcome, writers = EncodeResult(), DatasetWriters(folder, number)
    refusals = folder / "refused" / f"part-{number:06d}.jsonl"
    refusals.parent.mkdir(parents=True, exist_ok=True)
    marks = RecordingFingerprints()
    with writers, refusals.open("w", encoding="utf-8") as notes:
        for place, found in scan_slice(piece, root):
            outcome.rows += 1
            try:
                if isinstance(found, InputError):
                    raise RowRefused("row malformed", str(found))
                marks.add(found)
                rows = encoder.rows(place, found)
            except RowRefused as refusal:
                outcome.refused[refusal.reason] += 1
                note = {"place": place, "reason": refusal.reason, "message": str(refusal)}
                notes.write(json.dumps(note, ensure_ascii=False) + "\n")
                continue
            for name, row in rows.items():
                writers.add(name, row)
                outcome.written[name] += 1
    outcome.recordings = marks.mark
    return outcome


class RecordingFingerprints:
    """Tells whether sound files are those that they were, by name, size and time of change."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, dialogue: Dialogue) -> None:
        for path in dialogue.recordings:
            try:
                found = path.stat()
                said = f"{path.name} {found.st_size} {found.st_mtime_ns}\n"
            except OSError:
                said = f"{path.name} missing\n"
            self._digest.update(said.encode())

    @property
    def mark(self) -> str:
        return self._digest.hexdigest()[:16]


def recordings_in(piece: FileSlice, root: Path | None) -> str:
    """The mark of a slice's sound files as they are now."""
    marks = RecordingFingerprints()
    for _, found in scan_slice(piece, root):
        if not isinstance(found, InputError):
            marks.add(found)
    return marks.mark


class DatasetWriters:
    """The Parquet files of one part, each made when there is a row for it, in small row groups."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._name = folder, f"part-{number:06d}.parquet"
        self._files: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """name: of the folder."""
        waiting = self._waiting.setdefault(name, [])
        waiting.append(row)
        if len(waiting) == GROUP:
            self._flush(name)

    def _flush(self, name: str) -> None:
        rows, schema = self._waiting.pop(name, []), SCHEMAS[name]
        if not rows:
            return
        if name not in self._files:
            path = self._folder / name / self._name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = pq.ParquetWriter(path, schema, compression="zstd")
        columns = [pa.array(_cells(rows, column), column.type) for column in schema]
        self._files[name].write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=GROUP)

    def __enter__(self) -> "DatasetWriters":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for name in list(self._waiting):
            if kind is None:
                self._flush(name)
        for file in self._files.values():
            file.close()


def _cells(rows: list[Mapping[str, Any]], column: pa.Field) -> Iterator[Any]:
    is_map = pa.types.is_map(column.type)
    return (list(row[column.name].items()) if is_map else row[column.name] for row in rows)
