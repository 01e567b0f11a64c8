"""Rows of a data file that a user supplies, Parquet or JSONL, of the types that a schema says.

Every refusal is an InputError naming the file and the row or line.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from speech.errors import InputError
from speech.files import parsed, repeated, text, there


def rows(path: Path, schema: pa.Schema, optional: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """(place, row) of a Parquet file with the columns of the schema, each cast to its type; others are passed over.

    optional: columns that may be absent, and values that may be null: both are None.
    """
    if not there(path):
        raise InputError(f"data file {path} does not exist")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in schema.names if name in names]
            table = file.read(columns=wanted) if len(set(names)) == len(names) else None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    if table is None:
        raise InputError(f"{path} has two columns {repeated(names)!r}; their names must differ")
    for name in schema.names:
        if name not in names and name not in optional:
            raise InputError(f"{path} has no column {name!r}; expected {', '.join(schema.names)}")
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows")
    present = [f.with_nullable(True) for f in schema if f.name in names]
    absent = dict.fromkeys(name for name in schema.names if name not in names)
    try:
        table = table.select(wanted).cast(pa.schema(present))
        table.validate(full=True)  # text that is not UTF-8, lengths that a damaged page gives
        found = table.to_pylist()
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: columns do not have the expected types: {error}") from error
    for number, row in enumerate(found, start=1):
        place = f"{path} row {number}"
        _refuse_missing(row, optional, place)
        yield place, absent | row


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
        _refuse_missing(row, optional, place)
        yield place, row


def _refuse_missing(row: dict, optional: Sequence[str], place: str) -> None:
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
