"""Dialogues as people keep them, in words and sound files: rows of the schema that WavAlign released, read as streams.

The schema is that of github.com/MM-Speech/WavAlign (README.md, dataset/vita_audio_rl_sft_dataset.py): `messages` with a
placeholder for each of `audios`, in order, the reply to imitate in `sft_target_*`, a worse one in `rejected_*`. It is
read from JSON lines and from Parquet with the same columns. `<audio>`, as ms-swift spells the placeholder, will do too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.errors import InputError
from common.files import resolve_within
from data.records import LONGEST_ID
from data.slices import FileSlice, file_slices, raw_rows, source_files

_TURN = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
DIALOGUES = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("messages", pa.list_(_TURN), nullable=False),
        pa.field("audios", pa.list_(pa.string())),
        pa.field("sft_target_text", pa.string()),
        pa.field("sft_target_audio", pa.string()),
        pa.field("rejected_text", pa.string()),
        pa.field("rejected_audio", pa.string()),
        pa.field("chosen_score", pa.float32()),
        pa.field("rejected_score", pa.float32()),
        pa.field("task_type", pa.string()),
        pa.field("question_text", pa.string()),
        pa.field("facts", pa.map_(pa.string(), pa.string())),
    ]
)
"""`id` and `facts` are ours; of the released fields, `messages` alone is needed."""
ROLES = ("system", "user", "assistant")
PLACEHOLDER = re.compile(r"<\|audio\|>|<audio>")


@dataclass(frozen=True, kw_only=True)
class DialogueTurn:
    """Something that is said, in words, as a recording, or both."""

    text: str | None = None
    recordings: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Message:
    """A turn of a dialogue."""

    role: str
    """system, user or assistant."""
    said: DialogueTurn


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A row."""

    id: str
    messages: tuple[Message, ...]
    """Up to where the reply begins; the last one is the user's."""
    question: str
    """In words; empty when they are not known."""
    target: DialogueTurn | None
    """The reply to imitate."""
    rejected: DialogueTurn | None
    """A worse one."""
    chosen_score: float | None = None
    rejected_score: float | None = None
    facts: dict[str, str] = field(default_factory=dict)
    """What raters are told, `task_type` and the earlier turns (`history`) among it."""

    @property
    def recordings(self) -> Iterator[Path]:
        """Every sound file that it names, in order."""
        for said in (*(message.said for message in self.messages), self.target, self.rejected):
            if said is not None:
                yield from said.recordings


def scan_dialogues(path: Path, root: Path | None = None) -> Iterator[tuple[str, Dialogue | InputError]]:
    """(place, dialogue) of each row of a .jsonl or .parquet file or a folder of them, or why it is none.

    root: the folder that names of recordings start from and stay below; None: the file's own. Raises InputError for a
    file that cannot be read at all.
    """
    for file in source_files(path):
        for piece in file_slices(file):
            yield from scan_slice(piece, root)


def scan_slice(piece: FileSlice, root: Path | None = None) -> Iterator[tuple[str, Dialogue | InputError]]:
    """The same of a part of a file."""
    below = root or piece.path.parent
    for number, found in raw_rows(piece, DIALOGUES.names):
        place = f"{piece.path} {piece.unit} {number}"
        try:
            if isinstance(found, InputError):
                raise found
            yield place, dialogue(found, place, f"{piece.path.stem}-{number:08d}", below)
        except InputError as error:
            yield place, error


def dialogue(row: dict[str, Any], place: str, name: str, root: Path) -> Dialogue:
    """A row as a Dialogue. name: its id when it has none. Raises InputError naming place and field."""
    own = _text(row, "id", place) or name
    if not own.isprintable() or len(own.encode()) > LONGEST_ID:
        raise InputError(f"{place}: field 'id' is {own!r}; expected 1 to {LONGEST_ID} printable bytes")
    messages = _messages(row, place, root)
    last = None
    while messages and messages[-1].role == "assistant":
        last = messages.pop()
    if not messages or messages[-1].role != "user":
        raise InputError(f"{place}: field 'messages' has no message of the user that a reply could answer")
    # As released, a reply at the end of `messages` is passed over where the target is given; else it is the target.
    target = _said(row, "sft_target", place, root) or (last.said if last else None)
    rejected = _said(row, "rejected", place, root)
    if rejected is not None and target is None:
        raise InputError(f"{place}: field 'rejected_text' or 'rejected_audio' is given, and no reply that is better")
    question = _text(row, "question_text", place) or "\n\n".join(
        message.said.text for message in messages if message.role == "user" and message.said.text
    )
    return Dialogue(
        id=own,
        messages=tuple(messages),
        question=question,
        target=target,
        rejected=rejected,
        chosen_score=_number(row, "chosen_score", place),
        rejected_score=_number(row, "rejected_score", place),
        facts=_known(row, messages, place) | _facts(row, place),
    )


def _messages(row: dict[str, Any], place: str, root: Path) -> list[Message]:
    given = row.get("messages")
    if not isinstance(given, list) or not given:
        raise InputError(f"{place}: field 'messages' is {_shown(given)}; expected a list of messages")
    audios = _audios(row, place, root)
    found, used = [], 0
    for number, one in enumerate(given, start=1):
        at = f"{place}: message {number} of field 'messages'"
        role, content = (one.get(name) if isinstance(one, dict) else None for name in ("role", "content"))
        if role not in ROLES:
            raise InputError(f"{at} has the role {_shown(role)}; allowed: {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InputError(f"{at} has the content {_shown(content)}; expected text")
        wanted = len(PLACEHOLDER.findall(content))
        recordings, used = tuple(audios[used : used + wanted]), used + wanted
        text = " ".join(part.strip() for part in PLACEHOLDER.split(content) if part.strip())
        if not text and not wanted:
            raise InputError(f"{at} is empty")
        found.append(Message(role=role, said=DialogueTurn(text=text or None, recordings=recordings)))
    if used != len(audios):
        raise InputError(
            f"{place}: field 'audios' names {len(audios)} recordings, and 'messages' have {used} placeholders <|audio|>"
        )
    return found


def _audios(row: dict[str, Any], place: str, root: Path) -> list[Path]:
    given = row.get("audios")
    if given is None:
        return []
    if not isinstance(given, list):
        raise InputError(f"{place}: field 'audios' is {_shown(given)}; expected a list of file names")
    return [_recording(name, "audios", place, root) for name in given]


def _said(row: dict[str, Any], name: str, place: str, root: Path) -> DialogueTurn | None:
    text, audio = _text(row, f"{name}_text", place), _text(row, f"{name}_audio", place)
    if text is None and audio is None:
        return None
    return DialogueTurn(text=text, recordings=(_recording(audio, f"{name}_audio", place, root),) if audio else ())


def _recording(name: Any, field: str, place: str, root: Path) -> Path:
    if not isinstance(name, str):
        raise InputError(f"{place}: field {field!r} holds {_shown(name)}; expected the name of a file")
    try:
        return resolve_within(root, name.strip())
    except InputError as error:
        raise InputError(f"{place}: field {field!r}: {error}") from error


def _known(row: dict[str, Any], messages: list[Message], place: str) -> dict[str, str]:
    """What the row says by itself."""
    task = _text(row, "task_type", place)
    said = [(message.role, message.said.text) for message in messages[:-1] if message.role != "system"]
    earlier = [f"{role}: {text}" for role, text in said if text]
    facts = {"task_type": task} if task else {}
    return facts | ({"history": "\n".join(earlier)} if earlier else {})


def _facts(row: dict[str, Any], place: str) -> dict[str, str]:
    given = row.get("facts")
    pairs = list(given.items()) if isinstance(given, dict) else given if given is not None else []
    try:
        facts = dict(pairs)
        good = len(facts) == len(pairs) and all(isinstance(text, str) for item in facts.items() for text in item)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise InputError(f"{place}: field 'facts' is {_shown(given)}; expected names, each with one text")
    return facts


def _text(row: dict[str, Any], name: str, place: str) -> str | None:
    """A text without blanks around it; None where there is none."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{place}: field {name!r} is {_shown(value)}; expected text")
    return value.strip() or None


def _number(row: dict[str, Any], name: str, place: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InputError(f"{place}: field {name!r} is {_shown(value)}, which is no score; leave out what is not known")
    return float(value)


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!r:.80}"
