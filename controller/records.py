"""The files of a run: what happened, kept so that anyone can read it later, after a crash as well.

    runs/NAME/config.yaml          resolved configuration, as text
              iterations.parquet   a row an iteration, the columns of `Iteration.row()`
              replies/000007.parquet   a row a reply of iteration 7, the columns of `REPLIES`
              summary.json         what came of it
              events.jsonl         a line a fault, restart, scaling, override, …

A file is either whole or not there: it is written aside, flushed to the disk and renamed. Only events are appended.
A number that is not finite is stored as null, never as NaN.
"""

import json
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from controller.iteration import Iteration
from reward.rater import Missing, Scorecard
from speech.errors import InputError
from speech.records import Reply

WORDS = pa.map_(pa.string(), pa.string())
REPLIES = pa.schema(
    [
        pa.field("iteration", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("worker", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("weight_version", pa.int64(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("defect", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("channels", pa.list_(pa.int8()), nullable=False),
        pa.field("logps", pa.list_(pa.float32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("total", pa.float32()),
        pa.field("advantage", pa.float32()),
        pa.field("scores", pa.map_(pa.string(), pa.float32()), nullable=False),
        pa.field("missing", WORDS, nullable=False),
        pa.field("details", WORDS, nullable=False),
        pa.field("rater_versions", WORDS, nullable=False),
        pa.field("seconds_audio", pa.float32()),
    ]
)
"""Of every reply: its tokens, who sampled it with which weights, and what made its score (method §7, rule 9).
A rater stands in `scores` when it gave a number, in `missing` with the reason otherwise."""

LEADING = ("iteration", "weight_version", "lambda", "lambda_raw")
"""First columns of iterations.parquet; the others keep the order in which they came."""

WHOLE_NUMBERS = {name for name, kind in typing.get_type_hints(Iteration).items() if kind is int} | {"scores_missing"}


@dataclass(frozen=True, kw_only=True)
class ScoredReply:
    """A row of replies/*.parquet."""

    reply: Reply
    text: str
    """The words of the text channel."""
    scorecard: Scorecard
    total: float | None
    """The score that λ and the advantage come from; None when it is missing."""
    advantage: float | None
    """None when the reply gave no preference gradient."""


class Records:
    """Writes the files of one run. Made by `create` or `open`."""

    def __init__(self, directory: Path, iterations: pa.Table | None) -> None:
        self.directory = directory
        self._iterations = iterations

    @classmethod
    def create(cls, directory: Path, config: str) -> Self:
        """Starts the records of a new run. Raises InputError when the directory already holds one."""
        if (directory / "config.yaml").exists():
            raise InputError(f"run.name: {directory} already holds a run; choose another run.name")
        (directory / "replies").mkdir(parents=True, exist_ok=True)
        _write_text(directory / "config.yaml", config)
        return cls(directory, None)

    @classmethod
    def open(cls, directory: Path, *, through: int | None = None) -> Self:
        """Goes on with a run's records.

        through: the last iteration to keep, that of the checkpoint from which the run goes on. Rows and replies of
        later iterations are dropped, as they will be done again; an event says so. None keeps everything.
        Raises InputError when there is no run, or when its records end before `through`.
        """
        if not (directory / "config.yaml").is_file():
            raise InputError(f"{directory} is not the directory of a run: it has no config.yaml")
        _drop_torn_line(directory / "events.jsonl")
        records = cls(directory, read_iterations(directory) if (directory / "iterations.parquet").exists() else None)
        if through is not None:
            records._rewind(through)
        return records

    @property
    def last(self) -> int:
        """Number of the last recorded iteration; 0 before the first."""
        return (
            self._iterations["iteration"][-1].as_py() if self._iterations is not None and len(self._iterations) else 0
        )

    def add_iteration(self, iteration: Iteration) -> None:
        """Adds a row to iterations.parquet. Raises ValueError when an iteration would be skipped or repeated."""
        if iteration.iteration != self.last + 1:
            raise ValueError(f"iteration {iteration.iteration} cannot follow iteration {self.last} in the records")
        row = iteration.row()
        names = [*LEADING, *(name for name in row if name not in LEADING)]
        new = pa.table({name: pa.array([_finite(row[name])], _column_type(name)) for name in names})
        if self._iterations is not None:
            # Raters can come and go when a run is resumed; the columns are the union, absent values null.
            new = pa.concat_tables([self._iterations, new], promote_options="default").combine_chunks()
        self._iterations = new
        _write_table(self.directory / "iterations.parquet", new)

    def add_replies(self, iteration: int, rows: Iterable[ScoredReply], rater_versions: Mapping[str, str]) -> None:
        """Writes replies/ITERATION.parquet. rater_versions: `version` of every rater by its name."""
        path = _replies_path(self.directory, iteration)
        _write_table(path, _replies_table(iteration, list(rows), rater_versions))

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Writes summary.json. NumPy scalars and arrays and paths are understood."""
        _write_text(self.directory / "summary.json", json.dumps(_plain(summary), indent=2, ensure_ascii=False) + "\n")

    def add_event(self, kind: str, *, time: datetime | None = None, **fields: object) -> None:
        """Appends a line to events.jsonl: time (UTC; now unless given), kind, and the fields."""
        when = (time or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(_plain({"time": when, "kind": kind, **fields}), ensure_ascii=False) + "\n"
        # One unbuffered write in append mode: lines of several threads do not mix.
        with (self.directory / "events.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())

    def _rewind(self, through: int) -> None:
        if through > self.last:
            raise InputError(
                f"{self.directory / 'iterations.parquet'} ends at iteration {self.last}, before iteration {through} "
                "from which the run is to go on"
            )
        dropped = self.last - through
        if self._iterations is not None and dropped:
            self._iterations = self._iterations.filter(pc.field("iteration") <= through)
            _write_table(self.directory / "iterations.parquet", self._iterations)
        for path in (self.directory / "replies").glob("*.parquet"):
            if int(path.stem) > through:
                path.unlink()
        if dropped:
            self.add_event("rewound", through=through, iterations_dropped=dropped)


def read_iterations(directory: Path) -> pa.Table:
    """iterations.parquet of a run, ordered by iteration. Raises InputError when it does not exist."""
    return _read_table(directory / "iterations.parquet")


def read_replies(directory: Path, iteration: int) -> pa.Table:
    """The replies of one iteration, schema `REPLIES`. Raises InputError when there are none."""
    return _read_table(_replies_path(directory, iteration))


def read_summary(directory: Path) -> dict:
    """summary.json of a run. Raises InputError when it does not exist: the run has not ended."""
    return json.loads(_existing(directory / "summary.json").read_text(encoding="utf-8"))


def read_events(directory: Path) -> list[dict]:
    """The events of a run, oldest first; none when nothing happened. A line still being written is left out."""
    path = directory / "events.jsonl"
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]


def _replies_path(directory: Path, iteration: int) -> Path:
    return directory / "replies" / f"{iteration:06d}.parquet"


def _replies_table(iteration: int, rows: list[ScoredReply], rater_versions: Mapping[str, str]) -> pa.Table:
    replies = [row.reply for row in rows]
    marks = [_split(row.scorecard) for row in rows]
    columns: dict[str, object] = {
        "iteration": [iteration] * len(rows),
        "prompt_id": [reply.prompt_id for reply in replies],
        "index": [reply.index for reply in replies],
        "worker": [reply.worker for reply in replies],
        "seed": [reply.seed for reply in replies],
        "weight_version": [reply.weight_version for reply in replies],
        "finish": [str(reply.finish) for reply in replies],
        "defect": [reply.defect for reply in replies],
        "token_ids": _lists([reply.token_ids for reply in replies], pa.int32()),
        "channels": _lists([reply.channels for reply in replies], pa.int8()),
        "logps": _lists([reply.logps for reply in replies], pa.float32()),
        "text": [row.text for row in rows],
        "total": [_finite(row.total) for row in rows],
        "advantage": [_finite(row.advantage) for row in rows],
        "scores": [list(scores.items()) for scores, _ in marks],
        "missing": [list(missing.items()) for _, missing in marks],
        "details": [list(row.scorecard.details.items()) for row in rows],
        "rater_versions": [list(rater_versions.items())] * len(rows),
        "seconds_audio": [_finite(row.scorecard.seconds) for row in rows],
    }
    return pa.table(columns, schema=REPLIES)


def _split(scorecard: Scorecard) -> tuple[dict[str, float], dict[str, str]]:
    scores: dict[str, float] = {}
    missing: dict[str, str] = {}
    for rater, score in scorecard.scores.items():
        if isinstance(score, Missing):
            missing[rater] = score.reason
        elif math.isfinite(score):
            scores[rater] = float(score)
        else:
            missing[rater] = "not a finite number"
    return scores, missing


def _lists(arrays: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    """Rows of tokens as one list column, without a Python object a token."""
    values = np.concatenate(arrays) if arrays else np.empty(0, kind.to_pandas_dtype())
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values, kind, mask=~np.isfinite(values)))


def _column_type(name: str) -> pa.DataType:
    # Named by the contract and not guessed from the values: a column that is null so far is still of numbers.
    return pa.int64() if name in WHOLE_NUMBERS else pa.float64()


def _finite(value: object) -> object:
    return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    """The value in terms of JSON: NumPy and paths translated, not finite → None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else _finite(value)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} does not exist (yet)")
    return path


def _read_table(path: Path) -> pa.Table:
    # partitioning=None: a "key=value" in the path of the run is no column.
    return pq.read_table(_existing(path), partitioning=None)


def _write_table(path: Path, table: pa.Table) -> None:
    _write_whole(path, lambda file: pq.write_table(table, file, compression="zstd"))


def _write_text(path: Path, text: str) -> None:
    _write_whole(path, lambda file: file.write(text.encode()))


def _write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _drop_torn_line(path: Path) -> None:
    """Cuts off the half line that a crash can leave, before another is appended to it."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
