"""Prompt, Demonstration, Reply and Group: the records that travel between rooms, and their Arrow schemas."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speech.channels import Channel
from speech.errors import InputError
from speech.vocabulary import Vocabulary

PROMPTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("facts", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
DEMONSTRATIONS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("reply_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("manner", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a caller said, as the model reads it."""

    id: str
    token_ids: np.ndarray
    """int32 [P]."""
    text: str
    """The question in words, for people and for judges."""
    facts: dict[str, str]
    """What raters need to know: the right answer, the manner asked for, …"""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt with a reply worth imitating; the anchor trains on it."""

    prompt_id: str
    prompt_ids: np.ndarray
    """int32 [P]."""
    reply_ids: np.ndarray
    """int32 [T], end-of-reply token included."""
    text: str


class Finish(StrEnum):
    """Why sampling of a reply ended."""

    STOP = "stop"
    """The end-of-reply token came."""
    LENGTH = "length"
    """The reply reached the length limit: it is truncated."""
    ABORTED = "aborted"
    """The engine gave it up."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One sampled answer to a prompt."""

    prompt_id: str
    index: int
    """Position within its group."""
    token_ids: np.ndarray
    """int32 [T], end-of-reply token included when it came."""
    channels: np.ndarray
    """int8 [T], values of Channel, -1 for ids that belong to none."""
    logps: np.ndarray
    """float32 [T], log-probability of each token under the very distribution it was sampled from (behaviour policy)."""
    weight_version: int
    finish: Finish
    defect: str | None
    """What is malformed about the structure, or None (method §7, rule 5)."""
    worker: str = ""
    """Name of the rollout worker."""
    seed: int = 0

    def count(self, channel: Channel) -> int:
        return int((self.channels == channel).sum())


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt with the G replies sampled for it."""

    prompt: Prompt
    replies: list[Reply] = field(default_factory=list)


def read_prompts(path: Path, vocabulary: Vocabulary) -> list[Prompt]:
    """Reads a Parquet file of prompts. Raises InputError naming file and row for missing fields and foreign ids."""
    return [
        Prompt(
            id=row["id"],
            token_ids=_ids(row, "token_ids", place, vocabulary),
            text=row["text"],
            facts=dict(row["facts"]),
        )
        for place, row in _rows(path, PROMPTS)
    ]


def read_demonstrations(path: Path, vocabulary: Vocabulary) -> list[Demonstration]:
    """Reads a Parquet file of demonstrations. Raises InputError naming file and row."""
    return [
        Demonstration(
            prompt_id=row["prompt_id"],
            prompt_ids=_ids(row, "prompt_ids", place, vocabulary),
            reply_ids=_ids(row, "reply_ids", place, vocabulary),
            text=row["text"],
        )
        for place, row in _rows(path, DEMONSTRATIONS)
    ]


def _rows(path: Path, schema: pa.Schema) -> Iterator[tuple[str, dict]]:
    if not path.is_file():
        raise InputError(f"data file {path} does not exist")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    for name in schema.names:
        if name not in table.column_names:
            raise InputError(f"{path} has no column {name!r}; expected {', '.join(schema.names)}")
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows")
    try:
        table = table.select(schema.names).cast(pa.schema([f.with_nullable(True) for f in schema]))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path}: columns do not have the expected types: {error}") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        place = f"{path} row {number}"
        for name, value in row.items():
            if value is None:
                raise InputError(f"{place}: field {name!r} is missing")
        yield place, row


def _ids(row: dict, name: str, place: str, vocabulary: Vocabulary) -> np.ndarray:
    if not row[name]:
        raise InputError(f"{place}: field {name!r} is empty")
    if None in row[name]:
        raise InputError(f"{place}: field {name!r} has a missing id at position {row[name].index(None)}")
    ids = np.asarray(row[name], dtype=np.int32)
    outside = (ids < 0) | (ids >= vocabulary.size)
    if outside.any():
        raise InputError(
            f"{place}: field {name!r} holds id {int(ids[outside][0])}, outside the vocabulary of {vocabulary.size}"
        )
    return ids
