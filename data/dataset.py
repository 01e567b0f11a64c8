"""Rows of Parquet files by their number, of which only a few are in memory: what a run deals out in any order.

    Shards     the rows of one or several data sets, one behind another, as a sequence of records
    ById       the same by a column of names

A row is looked up in its row group, which is decoded as a whole and kept for a while. So row groups are to be small:
`duet prepare` writes 256 rows each. In memory are 24 bytes for each row group, and the row groups that were used last.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from data import parquet
from data.parquet import batches, cast_table, open_parquet, within_file

KEPT = 64 << 20
"""Bytes of decoded row groups that are kept; the last one is, whatever its size."""
LARGEST_GROUP = 256 << 20
"""Decoded bytes of a row group: one is in memory to pick a row from it."""
OPEN = 64
"""Files that stay open."""
Record = TypeVar("Record")


class DatasetRow(NamedTuple):
    """A row of a decoded row group."""

    columns: Mapping[str, Any]
    """Ragged for lists of ids, pa.Array for the rest."""
    number: int
    folder: Path
    """Where its file is."""

    def ids(self, name: str) -> np.ndarray:
        """int32 [T], a copy, so that the row group need not stay."""
        return self.columns[name].row(self.number).copy()

    def path(self, name: str) -> str | None:
        """A file that is named relative to the row's own."""
        found = self.value(name)
        return None if found is None else normpath(self.folder / found)

    def value(self, name: str) -> Any:
        """As a Python object; None where there is no such column."""
        found = self.columns.get(name)
        return None if found is None else found[self.number].as_py()


@dataclass(frozen=True, kw_only=True)
class RecordType(Generic[Record]):
    """What the rows are."""

    schema: pa.Schema
    optional: Sequence[str] = ()
    """Columns that may be absent."""
    make: Callable[[DatasetRow], Record]
    """A record of a row that has been checked."""

    @property
    def ids(self) -> list[str]:
        """Names of the columns of ids, in order."""
        return [field.name for field in self.schema if pa.types.is_list(field.type)]


class Dataset(Sequence[Record]):
    """Records by number. Slices are lists. Raises InputError where a file can no longer be read."""

    def __init__(self, kind: RecordType[Record], sources: Sequence[Sequence[Path]]) -> None:
        """sources: the Parquet files of each data set. Raises InputError for files that have no such rows."""
        self.kind = kind
        self.files = [file for files in sources for file in files]
        groups: list[tuple[int, int, int]] = []
        for place, path in enumerate(self.files):
            with open_parquet(path, kind.schema, kind.optional) as file:
                groups += _groups(file, path, place)
        if not groups:
            raise InputError(f"{self.files[0]} has no rows")
        table = np.array(groups, dtype=np.int64)
        self._file, self._group = table[:, 0].astype(np.int32), table[:, 1].astype(np.int32)
        self._begins = np.concatenate([[0], np.cumsum(table[:, 2])])
        """First row of each row group, and the number of rows."""
        firsts = np.searchsorted(self._file, np.arange(len(self.files) + 1))
        self._first_of_file = self._begins[firsts]
        ends = np.cumsum([len(files) for files in sources])
        self.counts = np.diff(np.concatenate([[0], self._first_of_file[ends]])).tolist()
        """Rows of each data set."""
        self.marks: list[str] = []
        """A fingerprint of the ids of each data set."""
        self.longest = 0
        """Ids of the row that has most, all its columns of ids together."""
        self.families: set[str | None] = set()
        """For which the data sets were prepared, replies that follow their structure; None: rows as they came."""
        self._kept: OrderedDict[int, tuple[Mapping[str, Any], int]] = OrderedDict()
        self._size = 0
        """Bytes of what is kept."""
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self._begins[-1])

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group = int(np.searchsorted(self._begins, number, side="right")) - 1
        with self._lock:
            folder = self.files[int(self._file[group])].parent
            return self.kind.make(DatasetRow(self._decoded(group), number - int(self._begins[group]), folder))

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def place(self, number: int) -> str:
        """File and row of a record, for people."""
        file = int(np.searchsorted(self._first_of_file, number, side="right")) - 1
        return f"{self.files[file]} row {number - int(self._first_of_file[file]) + 1}"

    def file_rows(self) -> list[tuple[Path, int]]:
        """The files in order, each with its rows."""
        return list(zip(self.files, np.diff(self._first_of_file).tolist(), strict=True))

    def stream(self, *names: str, source: int | None = None) -> Iterator[pa.Table]:
        """These columns of all rows in order, or of one data set's, some thousand rows at a time."""
        schema = pa.schema([self.kind.schema.field(name) for name in names])
        first = int(np.sum(self.counts[:source])) if source is not None else 0
        last = first + self.counts[source] if source is not None else len(self)
        for path, begin in zip(self.files, self._first_of_file, strict=False):
            if first <= begin < last:
                with open_parquet(path, self.kind.schema, self.kind.optional) as file:
                    yield from batches(file, path, within_file(file, schema))

    def hashes(self, name: str) -> np.ndarray:
        """uint64 [rows]: of a column of strings (`data.parquet.hashes`)."""
        found = [parquet.hashes(parquet.string_bytes(table[name])) for table in self.stream(name)]
        return np.concatenate(found)

    def _decoded(self, group: int) -> Mapping[str, Any]:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group][0]
        table = self._read(group)
        found: dict[str, Any] = {}
        for name in table.column_names:
            column = parquet.combine_chunks(table[name])
            found[name] = parquet.id_lists(column) if name in self.kind.ids else column
        self._kept[group] = (found, table.nbytes)
        self._size += table.nbytes
        while len(self._kept) > 1 and self._size > KEPT:
            self._size -= self._kept.popitem(last=False)[1][1]
        return found

    def _read(self, group: int) -> pa.Table:
        place = int(self._file[group])
        path = self.files[place]
        if place not in self._open:
            self._open[place] = open_parquet(path, self.kind.schema, self.kind.optional)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(place)
        file = self._open[place]
        schema = within_file(file, self.kind.schema)
        try:
            table = file.read_row_group(int(self._group[group]), columns=schema.names, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path} is not a Parquet file: {error}") from error
        if table.num_rows != self._begins[group + 1] - self._begins[group]:
            raise InputError(f"{path} has changed since it was opened")
        return cast_table(table, path, schema)


def _groups(file: pq.ParquetFile, path: Path, place: int) -> list[tuple[int, int, int]]:
    """(file, row group, rows) of each row group that has any."""
    found = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if group.total_byte_size > LARGEST_GROUP:
            raise InputError(
                f"{path}: row group {number} has {group.total_byte_size / 2**20:,.0f} MiB, more than the "
                f"{LARGEST_GROUP >> 20} MiB that are read to pick a row of it; write the file with row_group_size=1024"
            )
        if group.num_rows:
            found.append((place, number, group.num_rows))
    return found


def name_hashes(records: Sequence[Any], name: str) -> np.ndarray:
    """uint64 [rows]: hashes of the names in a field, for records on disk without a look at each."""
    if isinstance(records, Dataset):
        return records.hashes(name)
    names = pa.array([getattr(record, name) for record in records], pa.string())
    return parquet.hashes(parquet.string_bytes(names))


class DatasetIndex(Mapping[str, Record]):
    """Records by the name in a column. 12 bytes a row are in memory."""

    def __init__(self, records: Dataset[Record], name: str, *, last: bool = False) -> None:
        """last: of several with one name, the last is meant, not the first."""
        found = records.hashes(name)
        self._order = np.argsort(found, kind="stable").astype(np.int32)
        self._hashes = found[self._order]
        self._records, self._name, self._last = records, name, last

    def __getitem__(self, key: str) -> Record:
        wanted = parquet.hashes(parquet.string_bytes(pa.array([key], pa.string())))[0]
        begin, end = (int(np.searchsorted(self._hashes, wanted, side=side)) for side in ("left", "right"))
        for place in range(begin, end)[:: -1 if self._last else 1]:
            record = self._records[int(self._order[place])]
            if getattr(record, self._name) == key:  # and not merely its hash
                return record
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        firsts = np.flatnonzero(np.diff(self._hashes, prepend=~self._hashes[:1]))
        return (getattr(self._records[int(self._order[place])], self._name) for place in firsts)

    def __len__(self) -> int:
        return int(np.count_nonzero(np.diff(self._hashes, prepend=~self._hashes[:1])))
