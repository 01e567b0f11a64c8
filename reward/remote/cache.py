"""Cache of remote raters' answers, in memory and as a table in a checkpoint.

It holds scores only: a failed question is asked again.
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
"""One row per answer, least recently used first."""


@dataclass(frozen=True, kw_only=True)
class CachedAnswer:
    score: float
    reason: str
    """The rater's explanation; may be empty."""


def cache_key(rater: str, version: str, spoken: SpokenReply, *, listens: bool = True) -> bytes:
    """Return the SHA-256 of the rater's name, its version and everything that it is given.

    Args:
        listens: True if the rater gets the waveform.
    """
    prompt = spoken.prompt
    parts = [text.encode("utf-8", "surrogatepass") for text in (rater, version, prompt.id, prompt.text, spoken.text)]
    parts.append(json.dumps(sorted(prompt.facts.items())).encode())
    if listens and spoken.waveform is not None:
        parts.append(str(spoken.waveform.rate).encode())
        parts.append(np.ascontiguousarray(spoken.waveform.samples, dtype="<f4").tobytes())
    digest = hashlib.sha256()
    for part in parts:  # with lengths, so that different lists of parts never concatenate to the same bytes
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class AnswerCache:
    """LRU cache of one rater's answers."""

    def __init__(self, rater: str, version: str, max_size: int) -> None:
        self._rater, self._version, self._max_size = rater, version, max_size
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
        while len(self._answers) > self._max_size:
            self._answers.popitem(last=False)

    def table(self) -> pa.Table:
        """Return all answers, with the schema ANSWERS."""
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
        """Add the answers of this rater and version. Ignore others, and keep answers that are already here."""
        own = (pc.field("rater") == self._rater) & (pc.field("version") == self._version)
        for row in table.filter(own).to_pylist():
            if row["key"] not in self._answers:
                self.put(row["key"], CachedAnswer(score=row["score"], reason=row["reason"]))


def merge_answers(tables: Iterable[pa.Table], max_rows: int | None = None) -> pa.Table:
    """Merge tables of answers. Of duplicates the last one stays.

    Args:
        max_rows: Rows to keep, from the end.
    """
    merged = pa.concat_tables([ANSWERS.empty_table(), *tables])
    last: dict[bytes, int] = {}
    for index, key in enumerate(merged.column("key").to_pylist()):
        last.pop(key, None)
        last[key] = index
    kept = list(last.values())
    return merged.take(pa.array(kept if max_rows is None else kept[max(0, len(kept) - max_rows) :], pa.int64()))


def write_answers(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def read_answers(path: Path) -> pa.Table:
    """Read a file of `write_answers`. Raise InputError that names the file for anything else."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot read the judge answers: {error}") from error
    if not table.schema.equals(ANSWERS):
        raise InputError(f"{path} has the columns {', '.join(table.column_names)}; expected {', '.join(ANSWERS.names)}")
    if any(column.null_count for column in table.columns) or not np.isfinite(table.column("score").to_numpy()).all():
        raise InputError(f"{path} is damaged: a row has an empty field or a score that is not a finite number")
    return table
