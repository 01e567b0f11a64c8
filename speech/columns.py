"""Columns of Arrow as NumPy's arrays, without Python's objects: what is asked of millions of rows is asked here."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Constants of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""


class Ragged(NamedTuple):
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


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def id_lists(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """A list<int32> column without nulls: values int32."""
    array = whole(column)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy()
    return Ragged(values, offsets - offsets[0])


def string_bytes(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """A string column: values uint8, in UTF-8. A null is the empty string."""
    array = whole(column)
    if array.null_count:
        array = array.fill_null("")
    _, offset_buffer, data = array.buffers()
    if len(array) == 0 or data is None:
        return Ragged(np.empty(0, dtype=np.uint8), np.zeros(len(array) + 1, dtype=np.int64))
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    offsets = offsets.astype(np.int64)
    return Ragged(np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0])


def hashes(strings: Ragged) -> np.ndarray:
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


def repeats(values: np.ndarray) -> np.ndarray:
    """The values that are there more than once, each once, in order."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def as_bytes(columns: Sequence[Ragged]) -> bytes:
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
