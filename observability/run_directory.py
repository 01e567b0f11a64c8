"""Run directory: the files of a run, and the lock that allows one controller per run.

    runs/NAME/config.yaml          resolved configuration, as text
              iterations.parquet   one row per iteration, the columns of `IterationStats.row()`
              replies/000007.parquet   one row per reply of iteration 7, the columns of `REPLIES`
              evaluations/before/held_out.parquet   the same for an evaluation set, before or after
              listening/000010.parquet   the same for the prompts recorded at stages, after iteration 10
              summary.json         results of the run
              events.jsonl         one line per error, restart, resize, override, …

Files are written atomically: to a temporary file that is flushed and renamed. Only events are appended.
Non-finite numbers are stored as null, never as NaN.
"""

import errno
import fcntl
import json
import math
import os
import shutil
import socket
import time
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import check_exists, parse_json, read_text
from common.secrets import redact
from observability.iteration import IterationStats
from observability.reply_schema import ReplyProvenance, ReplyRecord, replies_table
from observability.speech_health import MEASURES

LEADING = ("iteration", "weight_version", "lambda", "lambda_raw")
"""First columns of iterations.parquet. The others follow in the order of the rows."""


WHOLE_NUMBERS = {n for n, kind in typing.get_type_hints(IterationStats).items() if kind in (int, int | None)}


WHOLE_NUMBERS |= {"scores_missing"}


class RunDirectory:
    """Writer of the files of one run, built by `create` or `open`."""

    def __init__(self, directory: Path, iterations: pa.Table | None) -> None:
        self.directory = directory
        self._iterations = iterations

    @classmethod
    def create(cls, directory: Path, config: str) -> Self:
        """Create the files of a new run. Raise InputError if the directory already holds a run."""
        if (directory / "config.yaml").exists():
            raise InputError(f"run.name: {directory} already holds a run; choose another run.name")
        (directory / "replies").mkdir(parents=True, exist_ok=True)
        _write_text(directory / "config.yaml", redact(config))
        return cls(directory, None)

    @classmethod
    def open(cls, directory: Path, *, through: int | None = None) -> Self:
        """Open the files of an existing run to continue it.

        Args:
            through: last iteration to keep, that of the checkpoint. Rows and replies of later iterations are dropped
                and recorded again; an event reports it. None keeps all.

        Raises:
            InputError: the directory holds no run, or its records end before `through`.
        """
        if not (directory / "config.yaml").is_file():
            raise InputError(f"{directory} is not the directory of a run: it has no config.yaml")
        _drop_torn_line(directory / "events.jsonl")
        path, iterations = directory / "iterations.parquet", None
        if path.exists():
            iterations = read_iterations(directory)
            if "iteration" not in iterations.column_names or not pa.types.is_integer(iterations["iteration"].type):
                raise InputError(f"{path} has no column 'iteration' of whole numbers")
        records = cls(directory, iterations)
        if through is not None:
            records.rewind(through)
            # Results of a run that was stopped early are outdated.
            (directory / "summary.json").unlink(missing_ok=True)
            shutil.rmtree(directory / "evaluations" / "after", ignore_errors=True)
        return records

    @property
    def last(self) -> int:
        """Number of the last recorded iteration; 0 before the first."""
        return (
            self._iterations["iteration"][-1].as_py() if self._iterations is not None and len(self._iterations) else 0
        )

    def first_sound(self) -> dict[str, float | None]:
        """Return `IterationStats.speech` of the first iteration, or {} before it."""
        if self._iterations is None or not len(self._iterations):
            return {}
        row = self._iterations.slice(0, 1).to_pylist()[0]
        return {name: row.get(f"speech_{name}") for name in MEASURES}

    def add_iteration(self, iteration: IterationStats) -> None:
        """Add a row to iterations.parquet. Raise ValueError if the iteration is not the next one."""
        if iteration.iteration != self.last + 1:
            raise ValueError(f"iteration {iteration.iteration} cannot follow iteration {self.last} in the records")
        row = iteration.row()
        names = [*LEADING, *(name for name in row if name not in LEADING)]
        new = pa.table({name: pa.array([_finite(row[name])], _column_type(name)) for name in names})
        if self._iterations is not None:
            # Reward functions may change when a run resumes: take the union of the columns; absent values are null.
            new = pa.concat_tables([self._iterations, new], promote_options="default").combine_chunks()
        self._iterations = new
        _write_table(self.directory / "iterations.parquet", new)

    def add_replies(self, iteration: int, rows: Iterable[ReplyRecord], made: ReplyProvenance) -> None:
        """Write replies/ITERATION.parquet."""
        _write_table(_numbered_path(self.directory, "replies", iteration), replies_table(iteration, list(rows), made))

    def add_evaluation(
        self, when: str, name: str, iteration: int, rows: Iterable[ReplyRecord], made: ReplyProvenance
    ) -> None:
        """Write evaluations/WHEN/NAME.parquet: the replies to an evaluation set after `iteration` iterations."""
        path = self.directory / "evaluations" / when / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_table(path, replies_table(iteration, list(rows), made))

    def add_listening(self, iteration: int, rows: Iterable[ReplyRecord], made: ReplyProvenance) -> None:
        """Write listening/ITERATION.parquet."""
        path = _numbered_path(self.directory, "listening", iteration)
        path.parent.mkdir(exist_ok=True)
        _write_table(path, replies_table(iteration, list(rows), made))

    def write_config(self, config: str) -> None:
        """Replace config.yaml by the current settings."""
        _write_text(self.directory / "config.yaml", redact(config))

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write summary.json. Values may include NumPy scalars, arrays and paths."""
        _write_text(self.directory / "summary.json", json.dumps(_plain(summary), indent=2, ensure_ascii=False) + "\n")

    def add_event(self, kind: str, *, time: datetime | None = None, **fields: object) -> None:
        """Append a line to events.jsonl: time (UTC, by default now), kind and the fields."""
        when = (time or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(_plain({"time": when, "kind": kind, **fields}), ensure_ascii=False) + "\n"
        # One unbuffered write in append mode: lines of several threads do not mix.
        with (self.directory / "events.jsonl").open("ab", buffering=0) as file:
            content = _bytes(line)
            written = file.write(content)
            if written != len(content):  # a partial line would corrupt the next one
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
            os.fsync(file.fileno())

    def rewind(self, through: int) -> None:
        """Drop the rows and replies of iterations after `through`."""
        if through > self.last:
            raise InputError(
                f"{self.directory / 'iterations.parquet'} ends at iteration {self.last}, before iteration {through} "
                "from which the run resumes; choose an earlier checkpoint"
            )
        dropped = self.last - through
        if self._iterations is not None and dropped:
            self._iterations = self._iterations.filter(pc.field("iteration") <= through)
            _write_table(self.directory / "iterations.parquet", self._iterations)
        for folder in ("replies", "listening"):
            for number in numbered(self.directory, folder):
                if number > through:
                    _numbered_path(self.directory, folder, number).unlink()
        if dropped:
            self.add_event("rewound", through=through, iterations_dropped=dropped)


def run_directory(run: Path) -> Path:
    """Return the directory of a run from its path or its name under runs/. Raise InputError if there is none."""
    for directory in (run, Path("runs") / run):
        if check_exists(directory / "config.yaml"):
            return directory
    raise InputError(f"{run} is not the directory of a run: it has no config.yaml, nor has {Path('runs') / run}")


def read_iterations(directory: Path) -> pa.Table:
    """Read iterations.parquet, ordered by iteration. Raise InputError if it is missing or not a Parquet file."""
    return _read_table(directory / "iterations.parquet")


def read_evaluation(directory: Path, when: str, name: str) -> pa.Table:
    """Read the replies to an evaluation set, "before" or "after" (schema `REPLIES`). Raise InputError if missing."""
    return _read_table(directory / "evaluations" / when / f"{name}.parquet")


def read_replies(directory: Path, iteration: int) -> pa.Table:
    """Read the replies of an iteration (schema `REPLIES`). Raise InputError if missing."""
    return _read_table(_numbered_path(directory, "replies", iteration))


def read_listening(directory: Path, iteration: int) -> pa.Table:
    """Read the replies recorded for listening after an iteration (schema `REPLIES`). Raise InputError if missing."""
    return _read_table(_numbered_path(directory, "listening", iteration))


def numbered(directory: Path, folder: str) -> list[int]:
    """Return the iterations that have a file under "replies" or "listening", in order."""
    return sorted(int(path.stem) for path in (directory / folder).glob("*.parquet") if path.stem.isdecimal())


def read_summary(directory: Path) -> dict:
    """Read summary.json. Raise InputError if it is missing (the run has not ended) or invalid."""
    path = _existing(directory / "summary.json")
    summary = parse_json(read_text(path), str(path))
    if not isinstance(summary, dict):
        raise InputError(f"{path}: expected an object, got {type(summary).__name__}")
    return summary


def read_events(directory: Path) -> list[dict]:
    """Read the events of a run, oldest first.

    An incomplete last line and invalid lines are skipped: a crash or a full disk can truncate a line.
    """
    path = directory / "events.jsonl"
    if not check_exists(path):
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [event for line in whole.split(b"\n") if (event := _event(line)) is not None]


def _event(line: bytes) -> dict | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None


def _numbered_path(directory: Path, folder: str, iteration: int) -> Path:
    return directory / folder / f"{iteration:06d}.parquet"


def _column_type(name: str) -> pa.DataType:
    # Types follow the file contract, not the values: a column that is null so far is still numeric.
    if name == "demonstrations":
        return pa.list_(pa.string())
    return pa.int64() if name in WHOLE_NUMBERS else pa.float64()


def _finite(value: object) -> object:
    return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    """Convert a value to JSON types: NumPy and paths converted, non-finite numbers to None, secrets to ***."""
    if isinstance(value, Mapping):
        return {redact(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return redact(str(value)) if isinstance(value, str | Path) else _finite(value)


def _existing(path: Path) -> Path:
    if not check_exists(path):
        raise InputError(f"{path} does not exist (yet)")
    return path


def _read_table(path: Path) -> pa.Table:
    try:
        # Arrow opens a path twice, and a running job may replace the file in between: pass one open file.
        with _existing(path).open("rb") as file:
            return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error


def _write_table(path: Path, table: pa.Table) -> None:
    _write_whole(path, lambda file: pq.write_table(table, file, compression="zstd"))


def _write_text(path: Path, content: str) -> None:
    _write_whole(path, lambda file: file.write(_bytes(content)))


def _bytes(content: str) -> bytes:
    """Encode as UTF-8; unpaired surrogates, as in a file name that is not UTF-8, are escaped."""
    return content.encode(errors="backslashreplace")


def _write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _drop_torn_line(path: Path) -> None:
    """Truncate the incomplete last line that a crash can leave."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


NAME = ".claim"


POLL_INTERVAL_S = 0.1


class RunLock:
    """Lock on a run directory. The operating system releases it when the process ends."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @classmethod
    def acquire(cls, run: Path, timeout_s: float = 15.0) -> Self:
        """Acquire the lock, waiting up to `timeout_s` for a process that is ending.

        Raises:
            InputError: another process holds the lock.
        """
        file = (run / NAME).open("a+")
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    file.close()
                    raise InputError(f"{run} is in use by {holder}; wait until it has ended") from error
                time.sleep(POLL_INTERVAL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return cls(file)

    @staticmethod
    def is_held(run: Path) -> bool:
        """Return True if a process holds the lock of this run."""
        try:
            file = (run / NAME).open("rb")
        except OSError:  # no process ever held it
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def release(self) -> None:
        self._file.close()
