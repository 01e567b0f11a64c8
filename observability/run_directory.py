"""One controller a run: whoever works on a run's directory holds a lock on it for as long as its process lives.

The files of a run: what happened, kept so that anyone can read it later, after a crash as well.

    runs/NAME/config.yaml          resolved configuration, as text
              iterations.parquet   a row an iteration, the columns of `IterationStats.row()`
              replies/000007.parquet   a row a reply of iteration 7, the columns of `REPLIES`
              evaluations/before/held_out.parquet   the same for the evaluation sets, before and after
              listening/000010.parquet   the same for the few prompts that people listen to, after iteration 10
              summary.json         what came of it
              events.jsonl         a line a fault, restart, scaling, override, …

A file is either whole or not there: it is written aside, flushed to the disk and renamed. Only events are appended.
A number that is not finite is stored as null, never as NaN.
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
"""First columns of iterations.parquet; the others keep the order in which they came."""


WHOLE_NUMBERS = {n for n, kind in typing.get_type_hints(IterationStats).items() if kind in (int, int | None)}


WHOLE_NUMBERS |= {"scores_missing"}


class RunDirectory:
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
        _write_text(directory / "config.yaml", redact(config))
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
        path, iterations = directory / "iterations.parquet", None
        if path.exists():
            iterations = read_iterations(directory)
            if "iteration" not in iterations.column_names or not pa.types.is_integer(iterations["iteration"].type):
                raise InputError(f"{path} has no column 'iteration' of whole numbers")
        records = cls(directory, iterations)
        if through is not None:
            records.rewind(through)
            # Of a run that was ended early: what it came to is no longer so.
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
        """`IterationStats.speech` of the first iteration; empty before there is one."""
        if self._iterations is None or not len(self._iterations):
            return {}
        row = self._iterations.slice(0, 1).to_pylist()[0]
        return {name: row.get(f"speech_{name}") for name in MEASURES}

    def add_iteration(self, iteration: IterationStats) -> None:
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

    def add_replies(self, iteration: int, rows: Iterable[ReplyRecord], made: ReplyProvenance) -> None:
        """Writes replies/ITERATION.parquet."""
        _write_table(_numbered_path(self.directory, "replies", iteration), replies_table(iteration, list(rows), made))

    def add_evaluation(
        self, when: str, name: str, iteration: int, rows: Iterable[ReplyRecord], made: ReplyProvenance
    ) -> None:
        """Writes evaluations/WHEN/NAME.parquet: the replies to an evaluation set after `iteration` iterations."""
        path = self.directory / "evaluations" / when / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_table(path, replies_table(iteration, list(rows), made))

    def add_listening(self, iteration: int, rows: Iterable[ReplyRecord], made: ReplyProvenance) -> None:
        """Writes listening/ITERATION.parquet."""
        path = _numbered_path(self.directory, "listening", iteration)
        path.parent.mkdir(exist_ok=True)
        _write_table(path, replies_table(iteration, list(rows), made))

    def write_config(self, config: str) -> None:
        """Replaces config.yaml by the settings that hold from now on."""
        _write_text(self.directory / "config.yaml", redact(config))

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Writes summary.json. NumPy scalars and arrays and paths are understood."""
        _write_text(self.directory / "summary.json", json.dumps(_plain(summary), indent=2, ensure_ascii=False) + "\n")

    def add_event(self, kind: str, *, time: datetime | None = None, **fields: object) -> None:
        """Appends a line to events.jsonl: time (UTC; now unless given), kind, and the fields."""
        when = (time or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(_plain({"time": when, "kind": kind, **fields}), ensure_ascii=False) + "\n"
        # One unbuffered write in append mode: lines of several threads do not mix.
        with (self.directory / "events.jsonl").open("ab", buffering=0) as file:
            content = _bytes(line)
            written = file.write(content)
            if written != len(content):  # half a line would take the next one with it
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
            os.fsync(file.fileno())

    def rewind(self, through: int) -> None:
        """Drops the rows and replies of iterations after `through`, which will be done again."""
        if through > self.last:
            raise InputError(
                f"{self.directory / 'iterations.parquet'} ends at iteration {self.last}, before iteration {through} "
                "from which the run is to go on"
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
    """The directory of a run, given itself or by its name under runs/. Raises InputError when there is none."""
    for directory in (run, Path("runs") / run):
        if check_exists(directory / "config.yaml"):
            return directory
    raise InputError(f"{run} is not the directory of a run: it has no config.yaml, nor has {Path('runs') / run}")


def read_iterations(directory: Path) -> pa.Table:
    """iterations.parquet of a run, ordered by iteration. Raises InputError when it does not exist or is no Parquet."""
    return _read_table(directory / "iterations.parquet")


def read_evaluation(directory: Path, when: str, name: str) -> pa.Table:
    """The replies to an evaluation set, "before" or "after", schema `REPLIES`. Raises InputError without any."""
    return _read_table(directory / "evaluations" / when / f"{name}.parquet")


def read_replies(directory: Path, iteration: int) -> pa.Table:
    """The replies of one iteration, schema `REPLIES`. Raises InputError when there are none."""
    return _read_table(_numbered_path(directory, "replies", iteration))


def read_listening(directory: Path, iteration: int) -> pa.Table:
    """The replies that people listen to, after an iteration, schema `REPLIES`. Raises InputError without any."""
    return _read_table(_numbered_path(directory, "listening", iteration))


def numbered(directory: Path, folder: str) -> list[int]:
    """The iterations that "replies" or "listening" holds a file of, in order."""
    return sorted(int(path.stem) for path in (directory / folder).glob("*.parquet") if path.stem.isdecimal())


def read_summary(directory: Path) -> dict:
    """summary.json of a run. Raises InputError when it does not exist, the run has not ended, or is not one."""
    path = _existing(directory / "summary.json")
    summary = parse_json(read_text(path), str(path))
    if not isinstance(summary, dict):
        raise InputError(f"{path}: expected an object, got {type(summary).__name__}")
    return summary


def read_events(directory: Path) -> list[dict]:
    """The events of a run, oldest first; none when nothing happened.

    A line still being written is left out, and so is one that is no event: a crash or a full disk can tear one, and
    what came after it is still to be read.
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
    # Named by the contract and not guessed from the values: a column that is null so far is still of numbers.
    if name == "demonstrations":
        return pa.list_(pa.string())
    return pa.int64() if name in WHOLE_NUMBERS else pa.float64()


def _finite(value: object) -> object:
    return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    """The value in terms of JSON: NumPy and paths translated, not finite → None, secrets → ***."""
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
        # Opened once: by its path Arrow opens it twice, and a running job puts a new file in its place meanwhile.
        with _existing(path).open("rb") as file:
            return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error


def _write_table(path: Path, table: pa.Table) -> None:
    _write_whole(path, lambda file: pq.write_table(table, file, compression="zstd"))


def _write_text(path: Path, content: str) -> None:
    _write_whole(path, lambda file: file.write(_bytes(content)))


def _bytes(content: str) -> bytes:
    """UTF-8; half a character, as in a file name that is no UTF-8, is spelled out."""
    return content.encode(errors="backslashreplace")


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


NAME = ".claim"


LOOK_SECONDS = 0.1


class RunLock:
    """A held lock. The operating system lets go of it when the process ends, however it ends."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @classmethod
    def take(cls, run: Path, seconds: float = 15.0) -> Self:
        """Waits up to `seconds` for a process that is ending. Raises InputError when somebody else is at work on this
        run."""
        file = (run / NAME).open("a+")
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    file.close()
                    raise InputError(f"{run} is being worked on by {holder}; wait until that has ended") from error
                time.sleep(LOOK_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return cls(file)

    @staticmethod
    def held(run: Path) -> bool:
        """Whether somebody works on this run now. Takes nothing."""
        try:
            file = (run / NAME).open("rb")
        except OSError:  # nobody ever did
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def release(self) -> None:
        self._file.close()
