"""What remote raters answered, so that nothing is asked twice: in memory, and as a table in a checkpoint.

Only scores are kept: a failure may be gone the next time, and is asked again.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import InputError
from reward.types import SpokenReply

KEY_BYTES = 32
ANSWERS = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("rater", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""A row an answer, the one that was of use longest ago first."""


@dataclass(frozen=True, kw_only=True)
class CachedAnswer:
    score: float
    reason: str
    """What the rater said about it; may be empty."""


def cache_key(rater: str, version: str, spoken: SpokenReply, *, listens: bool = True) -> bytes:
    """What an answer is found by: a SHA-256 of the rater's name and version and of everything that it is told.

    listens: whether it is given the waveform.
    """
    prompt = spoken.prompt
    parts = [text.encode("utf-8", "surrogatepass") for text in (rater, version, prompt.id, prompt.text, spoken.text)]
    parts.append(json.dumps(sorted(prompt.facts.items())).encode())
    if listens and spoken.waveform is not None:
        parts.append(str(spoken.waveform.rate).encode())
        parts.append(np.ascontiguousarray(spoken.waveform.samples, dtype="<f4").tobytes())
    digest = hashlib.sha256()
    for part in parts:  # lengths, so that no two lists of parts read the same
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class AnswerCache:
    """One rater's answers, at most `size` of them: the one that was of no use for the longest time goes first."""

    def __init__(self, rater: str, version: str, size: int) -> None:
        self._rater, self._version, self._size = rater, version, size
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> CachedAnswer | None:
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        self._answers[key] = answer
        self._answers.move_to_end(key)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)

    def table(self) -> pa.Table:
        """All of it, of the schema ANSWERS."""
        count = len(self._answers)
        columns = [
            list(self._answers),
            [self._rater] * count,
            [self._version] * count,
            [answer.score for answer in self._answers.values()],
            [answer.reason for answer in self._answers.values()],
        ]
        return pa.table([pa.array(column, f.type) for column, f in zip(columns, ANSWERS, strict=True)], schema=ANSWERS)

    def load(self, table: pa.Table) -> None:
        """Adds the answers of this rater in this version; those of others are passed over. Own answers stay."""
        own = (pc.field("rater") == self._rater) & (pc.field("version") == self._version)
        for row in table.filter(own).to_pylist():
            if row["key"] not in self._answers:
                self.put(row["key"], CachedAnswer(score=row["score"], reason=row["reason"]))


def merge_answers(tables: Iterable[pa.Table], most: int | None = None) -> pa.Table:
    """Several tables of answers as one, each answer once, at its last place. most: rows to keep, the last ones."""
    every = pa.concat_tables([ANSWERS.empty_table(), *tables])
    last: dict[bytes, int] = {}
    for index, found in enumerate(every.column("key").to_pylist()):
        last.pop(found, None)
        last[found] = index
    kept = list(last.values())
    return every.take(pa.array(kept if most is None else kept[max(0, len(kept) - most) :], pa.int64()))


def write_answers(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def read_answers(path: Path) -> pa.Table:
    """Reads what `write_answers` wrote. Raises InputError naming the file for anything else."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: the answers of the judges cannot be read: {error}") from error
    if not table.schema.equals(ANSWERS):
        raise InputError(f"{path} has the columns {', '.join(table.column_names)}; expected {', '.join(ANSWERS.names)}")
    if any(column.null_count for column in table.columns) or not np.isfinite(table.column("score").to_numpy()).all():
        raise InputError(f"{path} is damaged: a row has an empty field, or a score that is no number")
    return table
