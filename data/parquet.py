"""Columns of Arrow as NumPy's arrays, without Python's objects: what is asked of millions of rows is asked here.

Rows of data that a user supplies, Parquet or JSONL, of the types that a schema says; never a whole file in memory.

A folder of Parquet files is read as one file, in the order of their names. Every refusal is an InputError naming the
file and the row or line.
"""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import check_exists, find_duplicate, parse_json

AT_ONCE = 4096
"""Rows that are in memory as Python's own objects: many times what they take in Arrow's form."""


UNFINISHED = "unfinished"
"""A file beside folders of Parquet that are being written (`data.manifest`)."""


LONGEST_LINE = 1 << 26
"""Bytes of a line of JSON: 64 MiB are no row, but a file without line ends."""


def list_files(path: Path) -> list[Path]:
    """The Parquet files that a path means: itself, or those in a folder by their names. Raises InputError."""
    if check_exists(path):
        return [path]
    try:
        found = sorted(file for file in path.glob("*.parquet") if check_exists(file)) if path.is_dir() else []
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"data file {path} does not exist: {error}") from error
    if not found:
        raise InputError(
            f"data file {path} does not exist{': it is a folder, and no Parquet file is in it' if folder else ''}"
        )
    if check_exists(path.parent / UNFINISHED):
        raise InputError(f"{path} is not whole: `duet prepare` was interrupted before it was; call it again")
    return found


def open_parquet(path: Path, schema: pa.Schema, optional: Sequence[str] = ()) -> pq.ParquetFile:
    """A Parquet file with the columns of the schema, those of `optional` apart, and with rows. Raises InputError."""
    if not check_exists(path):
        raise InputError(f"data file {path} does not exist")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    try:
        names = file.schema_arrow.names
        if (twice := find_duplicate(names)) is not None:
            raise InputError(f"{path} has two columns {twice!r}; their names must differ")
        for name in schema.names:
            if name not in names and name not in optional:
                raise InputError(f"{path} has no column {name!r}; expected {', '.join(schema.names)}")
        if file.metadata.num_rows == 0:
            raise InputError(f"{path} has no rows")
    except InputError:
        file.close()
        raise
    return file


def read_rows(path: Path, schema: pa.Schema, optional: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """(place, row) of Parquet with the columns of the schema, each cast to its type; others are passed over.

    optional: columns that may be absent: None, as values that are null. Whether a value may be null is for
    `refuse_missing` to say, row by row.
    """
    for part in list_files(path):
        with open_parquet(part, schema, optional) as file:
            present = within_file(file, schema)
            absent = dict.fromkeys(name for name in schema.names if name not in present.names)
            number = 0
            for table in batches(file, part, present):
                for row in plain(table, part):
                    number += 1
                    yield f"{part} row {number}", absent | row


def within_file(file: pq.ParquetFile, schema: pa.Schema) -> pa.Schema:
    """Those fields of the schema that the file has, each of which may be null."""
    names = set(file.schema_arrow.names)
    return pa.schema([field.with_nullable(True) for field in schema if field.name in names])


def batches(
    file: pq.ParquetFile, path: Path, schema: pa.Schema, groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """The columns of the schema, of its types, a batch of rows at a time. groups: row groups; None: all.

    Raises InputError naming the file when it is damaged or a column cannot have its type.
    """
    found = file.iter_batches(AT_ONCE, columns=schema.names, row_groups=groups)
    while True:
        try:
            batch = next(found, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path} is not a Parquet file: {error}") from error
        if batch is None:
            return
        yield cast_table(pa.Table.from_batches([batch]), path, schema)


def cast_table(table: pa.Table, path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of the schema, cast to its types and sound. Raises InputError naming the file."""
    try:
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)  # text that is not UTF-8, lengths that a damaged page gives
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: columns do not have the expected types: {error}") from error
    return table


def plain(table: pa.Table, path: Path) -> list[dict]:
    """The rows as Python's own objects. Raises InputError naming the file."""
    try:
        return table.to_pylist()
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: columns do not have the expected types: {error}") from error


def read_json_lines(path: Path, schema: pa.Schema, optional: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The rows of a JSONL file, each value of the type that the schema gives its field."""
    check_text(path)
    for place, found in objects(path, schema.names):
        row = {field.name: _typed(found.get(field.name), field, place) for field in schema}
        refuse_missing(row, optional, place)
        yield place, row


def check_text(path: Path) -> None:
    """Raises InputError for a file that is missing, or not text in UTF-8 up to its end."""
    if not check_exists(path):
        raise InputError(f"data file {path} does not exist")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error


def objects(path: Path, expected: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line that is not empty. expected: names of fields, for the message when it is none."""
    empty = True
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        empty = False
        yield f"{path} line {number}", parse_object(line, f"{path} line {number}", expected)
    if empty:
        raise InputError(f"{path} has no rows")


def parse_object(line: str, place: str, expected: Sequence[str]) -> dict[str, Any]:
    """A line of JSON as an object. Raises InputError."""
    found = parse_json(line, place)
    if not isinstance(found, dict):
        raise InputError(f"{place} is not a JSON object with the fields {', '.join(expected)}")
    return found


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time. Raises InputError when it is missing or not UTF-8."""
    if not check_exists(path):
        raise InputError(f"data file {path} does not exist")
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise InputError(f"{path} is not JSON lines: one has more than {LONGEST_LINE:,} bytes")
                yield line.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error


def refuse_missing(row: dict, optional: Sequence[str], place: str) -> None:
    """Raises InputError for a value that is null and must not be."""
    for name, value in row.items():
        if value is None and name not in optional:
            raise InputError(f"{place}: field {name!r} is missing")


def _typed(value: object, expected: pa.Field, place: str) -> object:
    try:
        if pa.types.is_list(expected.type) and isinstance(value, list):
            # Arrow would cut 5.5 down to 5.
            strange = [item for item in value if item is not None and type(item) is not int]
            if strange:
                raise TypeError(f"{strange[0]!r} is not a whole number")
        given = list(value.items()) if isinstance(value, dict) and pa.types.is_map(expected.type) else value
        return pa.array([given], expected.type)[0].as_py()
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: field {expected.name!r} is not of type {expected.type}: {error}") from error


def named_values(row: dict, name: str, place: str) -> dict:
    """A map column as a dict. Raises InputError when a name comes twice: one of its values would be lost."""
    twice = find_duplicate(key for key, _ in row[name] or [])
    if twice is not None:
        raise InputError(f"{place}: field {name!r} gives {twice!r} twice")
    return dict(row[name] or [])


_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Constants of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""


class RaggedColumn(NamedTuple):
    """A column of lists: row r is values[offsets[r]:offsets[r + 1]]."""

    values: np.ndarray
    offsets: np.ndarray
    """int64 [rows + 1], from 0."""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows]."""
        return np.diff(self.offsets)

    def row(self, number: int) -> np.ndarray:
        """A view."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]


def combine_chunks(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def id_lists(column: pa.ChunkedArray | pa.Array) -> RaggedColumn:
    """A list<int32> column without nulls: values int32."""
    array = combine_chunks(column)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy()
    return RaggedColumn(values, offsets - offsets[0])


def string_bytes(column: pa.ChunkedArray | pa.Array) -> RaggedColumn:
    """A string column: values uint8, in UTF-8. A null is the empty string."""
    array = combine_chunks(column)
    if array.null_count:
        array = array.fill_null("")
    _, offset_buffer, data = array.buffers()
    if len(array) == 0 or data is None:
        return RaggedColumn(np.empty(0, dtype=np.uint8), np.zeros(len(array) + 1, dtype=np.int64))
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    offsets = offsets.astype(np.int64)
    return RaggedColumn(np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0])


def hashes(strings: RaggedColumn) -> np.ndarray:
    """uint64 [rows]: of the bytes of each string; equal strings have equal hashes, within one process and version."""
    rows, lengths = len(strings.lengths), strings.lengths
    width = -(-max(1, int(lengths.max(initial=0))) // 8) * 8
    found = lengths.astype(np.uint64) * _MIX[0]
    step = max(1, (1 << 24) // width)  # rows whose padded bytes are 16 MiB
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        padded = np.zeros((end - begin, width), dtype=np.uint8)
        inside = np.arange(width) < lengths[begin:end, None]
        padded[inside] = strings.values[strings.offsets[begin] : strings.offsets[end]]
        words, part = padded.view(np.uint64), found[begin:end]
        for place in range(words.shape[1]):
            mixed = (part ^ words[:, place]) * _MIX[1]
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[2]
            mixed = (mixed ^ (mixed >> np.uint64(32))) + _MIX[0]
            # How long the others of a batch are must not matter.
            np.copyto(part, mixed, where=lengths[begin:end] > 8 * place)
    return found


def repeated_hashes(values: np.ndarray) -> np.ndarray:
    """The values that are there more than once, each once, in order."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def as_bytes(columns: Sequence[RaggedColumn]) -> bytes:
    """The rows of columns of ids, one behind another: of each row, of each column, the number of ids (4 bytes, the
    largest first) and the ids (4 bytes each, the smallest first). Files that say the same give the same bytes."""
    lengths = [column.lengths for column in columns]
    per_row = np.sum(lengths, axis=0) + len(columns)
    begins = np.concatenate([[0], np.cumsum(per_row)])
    out = np.empty(begins[-1], dtype="<u4")
    at = begins[:-1].copy()
    for column, length in zip(columns, lengths, strict=True):
        out[at] = length.astype(">u4").view("<u4")
        places = np.repeat(at + 1 - column.offsets[:-1], length) + np.arange(len(column.values))
        out[places] = column.values.astype("<i4", copy=False).view("<u4")
        at += length + 1
    return out.tobytes()
