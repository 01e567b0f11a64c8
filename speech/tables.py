"""Rows of a data file that a user supplies, Parquet or JSONL, of the types that a schema says.

Every refusal is an InputError naming the file and the row or line.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from speech.errors import InputError
from speech.files import parsed, repeated, text, there

AT_ONCE = 4096
"""Rows that are in memory as Python's own objects: many times what they take in Arrow's form."""


def rows(path: Path, schema: pa.Schema, optional: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """(place, row) of a Parquet file with the columns of the schema, each cast to its type; others are passed over.

    optional: columns that may be absent: None, as values that are null. Whether a value may be null is for
    `refuse_missing` to say, row by row.
    """
    if not there(path):
        raise InputError(f"data file {path} does not exist")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        if (twice := repeated(names)) is not None:
            raise InputError(f"{path} has two columns {twice!r}; their names must differ")
        for name in schema.names:
            if name not in names and name not in optional:
                raise InputError(f"{path} has no column {name!r}; expected {', '.join(schema.names)}")
        if file.metadata.num_rows == 0:
            raise InputError(f"{path} has no rows")
        absent = dict.fromkeys(name for name in schema.names if name not in names)
        for number, row in enumerate(_plain(file, path, [f for f in schema if f.name in names]), start=1):
            yield f"{path} row {number}", absent | row


def _plain(file: pq.ParquetFile, path: Path, present: list[pa.Field]) -> Iterator[dict]:
    """The rows of these columns, of their types, a batch of them at a time."""
    wanted = [field.name for field in present]
    batches = file.iter_batches(AT_ONCE, columns=wanted)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path} is not a Parquet file: {error}") from error
        if batch is None:
            return
        try:
            table = pa.Table.from_batches([batch]).select(wanted)
            table = table.cast(pa.schema([field.with_nullable(True) for field in present]))
            table.validate(full=True)  # text that is not UTF-8, lengths that a damaged page gives
            found = table.to_pylist()
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: columns do not have the expected types: {error}") from error
        yield from found


def lines(path: Path, schema: pa.Schema, optional: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The rows of a JSONL file, each value of the type that the schema gives its field."""
    if not there(path):
        raise InputError(f"data file {path} does not exist")
    content = text(path).split("\n")
    if not any(line.strip() for line in content):
        raise InputError(f"{path} has no rows")
    for number, line in enumerate(content, start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        found = parsed(line, place)
        if not isinstance(found, dict):
            raise InputError(f"{place} is not a JSON object with the fields {', '.join(schema.names)}")
        row = {field.name: _typed(found.get(field.name), field, place) for field in schema}
        refuse_missing(row, optional, place)
        yield place, row


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
    twice = repeated(key for key, _ in row[name] or [])
    if twice is not None:
        raise InputError(f"{place}: field {name!r} gives {twice!r} twice")
    return dict(row[name] or [])
