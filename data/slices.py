"""Parts of large files of rows: where each begins, so that several readers share a file and none reads it whole."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import check_exists
from data.parquet import AT_ONCE, LONGEST_LINE, parse_object

SUFFIXES = (".jsonl", ".parquet")
BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileSlice:
    """Rows of a file that lie one behind another."""

    path: Path
    first: int
    """Number of its first row or line, from 1."""
    begin: int
    """Of JSON lines, its first byte; of Parquet, its first row group."""
    end: int
    """Behind its last byte, or row group."""

    @property
    def unit(self) -> str:
        """What a row is called: lines count empty ones."""
        return "line" if self.path.suffix == ".jsonl" else "row"


def source_files(path: Path) -> list[Path]:
    """A .jsonl or .parquet file, or those in a folder by their names. Raises InputError."""
    if path.suffix in SUFFIXES and check_exists(path):
        return [path]
    found = (
        sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and check_exists(file))
        if path.is_dir()
        else []
    )
    if not found:
        raise InputError(f"{path} is no source of dialogues: expected a .jsonl or .parquet file, or a folder of them")
    return found


def file_slices(path: Path, rows: int = AT_ONCE) -> list[FileSlice]:
    """A file in parts of at least so many rows, but for the last. Raises InputError when it has none."""
    found = _row_groups(path, rows) if path.suffix == ".parquet" else _lines(path, rows)
    if not found:
        raise InputError(f"{path} has no rows")
    return found


def slice_digest(path: Path) -> str:
    """SHA-256 of a file. Raises InputError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def raw_rows(piece: FileSlice, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """(number, row) with the fields of these names that it has. Raises InputError when the file cannot be read."""
    return _table_rows(piece, names) if piece.path.suffix == ".parquet" else _line_rows(piece, names)


def _lines(path: Path, rows: int) -> list[FileSlice]:
    found: list[FileSlice] = []
    first, begin, number, position = 1, 0, 0, 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise InputError(f"{path} is not JSON lines: one has more than {LONGEST_LINE:,} bytes")
                number, position = number + 1, position + len(line)
                if number - first + 1 == rows:
                    found.append(FileSlice(path=path, first=first, begin=begin, end=position))
                    first, begin = number + 1, position
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return found + ([FileSlice(path=path, first=first, begin=begin, end=position)] if position > begin else [])


def _row_groups(path: Path, rows: int) -> list[FileSlice]:
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    found: list[FileSlice] = []
    first, begin, count = 1, 0, 0
    for group in range(metadata.num_row_groups):
        count += metadata.row_group(group).num_rows
        if count >= rows or (count and group + 1 == metadata.num_row_groups):
            found.append(FileSlice(path=path, first=first, begin=begin, end=group + 1))
            first, begin, count = first + count, group + 1, 0
    return found


def _line_rows(piece: FileSlice, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.begin)
            position, number = piece.begin, piece.first - 1
            while position < piece.end and (line := file.readline(LONGEST_LINE)):
                position, number = position + len(line), number + 1
                if line.strip():
                    yield number, _object(line, f"{piece.path} line {number}", names)
    except OSError as error:
        raise InputError(f"{piece.path} cannot be read: {error}") from error


def _object(line: bytes, place: str, names: Sequence[str]) -> dict[str, Any] | InputError:
    try:
        found = parse_object(line.decode("utf-8"), place, names)
    except UnicodeDecodeError as error:
        return InputError(f"{place} is not text in UTF-8: {error}")
    except InputError as error:
        return error
    return {name: found.get(name) for name in names}


def _table_rows(piece: FileSlice, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    number = piece.first
    try:
        with pq.ParquetFile(piece.path) as file:
            wanted = [name for name in file.schema_arrow.names if name in names]
            for batch in file.iter_batches(AT_ONCE // 8, row_groups=range(piece.begin, piece.end), columns=wanted):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{piece.path} is not a Parquet file: {error}") from error


def as_text(piece: FileSlice) -> str:
    """For another process."""
    return json.dumps(vars(piece) | {"path": str(piece.path)})


def from_text(text: str) -> FileSlice:
    """What `as_text` wrote."""
    given = json.loads(text)
    return FileSlice(**given | {"path": Path(given["path"])})
