"""Prompts, demonstrations and pairs as they lie on disk: opened, checked row by row, and not read into memory.

The checks are those of `speech.types`, made on whole columns; only when one fails are rows looked at one by one, to
say which it is. Folders with a manifest (`data.manifest`) were checked when they were written.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from common.errors import InputError
from data.dataset import Dataset, DatasetRow, RecordType
from data.manifest import read_prepared
from data.parquet import (
    RaggedColumn,
    as_bytes,
    combine_chunks,
    hashes,
    id_lists,
    list_files,
    repeated_hashes,
    string_bytes,
)
from data.records import (
    DEMONSTRATIONS,
    FEATURES,
    HEARD,
    LONGEST_ID,
    OPTIONAL,
    PAIRS,
    PROMPTS,
    scan_demonstrations,
    scan_pairs,
    scan_prompts,
)
from speech.types import Demonstration, PreferencePair, Prompt
from speech.vocabulary import Vocabulary

Record = TypeVar("Record")
Scan = Callable[[Path, Vocabulary], Iterator[tuple[str, Any]]]


def _prompt(row: DatasetRow) -> Prompt:
    return Prompt(
        id=row.value("id"),
        token_ids=row.ids("token_ids"),
        text=row.value("text"),
        facts=dict(row.value("facts")),
        features=row.path("features"),
    )


def _demonstration(row: DatasetRow) -> Demonstration:
    return Demonstration(
        prompt_id=row.value("prompt_id"),
        prompt_ids=row.ids("prompt_ids"),
        reply_ids=row.ids("reply_ids"),
        text=row.value("text"),
        features=row.path("features"),
    )


def _pair(row: DatasetRow) -> PreferencePair:
    return PreferencePair(
        prompt_id=row.value("prompt_id"),
        prompt_ids=row.ids("prompt_ids"),
        chosen_ids=row.ids("chosen_ids"),
        rejected_ids=row.ids("rejected_ids"),
        chosen_score=row.value("chosen_score"),
        rejected_score=row.value("rejected_score"),
        scores_chosen=dict(row.value("scores_chosen") or []),
        scores_rejected=dict(row.value("scores_rejected") or []),
        origin=row.value("origin") or "",
        features=row.path("features"),
    )


PROMPT = RecordType(schema=PROMPTS.append(FEATURES), optional=HEARD, make=_prompt)
DEMONSTRATION = RecordType(schema=DEMONSTRATIONS.append(FEATURES), optional=HEARD, make=_demonstration)
PAIR = RecordType(schema=PAIRS.append(FEATURES), optional=(*OPTIONAL, *HEARD), make=_pair)


def open_prompts(paths: Sequence[Path], vocabulary: Vocabulary) -> Dataset[Prompt]:
    """The prompts of files and folders, one behind another. Raises InputError as `speech.types.read_prompts`, and for
    an id that is in two of them."""
    shards = _open(PROMPT, paths, vocabulary, scan_prompts, _fair_prompts)
    if len(paths) > 1 and len(twice := repeated_hashes(found := shards.hashes("id"))):
        _refuse_twice(shards, np.flatnonzero(np.isin(found, twice)))
    return shards


def open_demonstrations(paths: Sequence[Path], vocabulary: Vocabulary) -> Dataset[Demonstration]:
    """The demonstrations of files and folders, one behind another. Raises InputError naming file and row."""
    return _open(DEMONSTRATION, paths, vocabulary, scan_demonstrations, lambda table: True)


def open_pairs(paths: Sequence[Path], vocabulary: Vocabulary) -> Dataset[PreferencePair]:
    """The pairs of Parquet files and folders, one behind another. Raises InputError naming file and row."""
    return _open(PAIR, paths, vocabulary, scan_pairs, _fair_pairs)


def _open(
    kind: RecordType[Record],
    paths: Sequence[Path],
    vocabulary: Vocabulary,
    scan: Scan,
    fair: Callable[[pa.Table], bool],
) -> Dataset[Record]:
    known = [read_prepared(path, vocabulary) for path in paths]
    shards = Dataset(kind, [list_files(path) for path in paths])
    for source, (path, found) in enumerate(zip(paths, known, strict=True)):
        if found is not None:
            shards.marks.append(found[1].mark)
            shards.longest = max(shards.longest, found[1].longest)
            shards.families.add(found[0].family)
            continue
        shards.families.add(None)
        mark, longest = _examine(shards, source, path, vocabulary, scan, fair)
        shards.marks.append(mark)
        shards.longest = max(shards.longest, longest)
    return shards


def _examine(
    shards: Dataset, source: int, path: Path, vocabulary: Vocabulary, scan: Scan, fair: Callable[[pa.Table], bool]
) -> tuple[str, int]:
    """Fingerprint and longest row of a data set, every row of which can be used. Raises InputError for the first that
    cannot."""
    kind, digest, longest, rows = shards.kind, hashlib.sha256(), 0, 0
    names: list[np.ndarray] = []
    suspect = False
    for table in shards.stream(*kind.schema.names, source=source):
        rows += table.num_rows
        if suspect or not _sound(table, kind, vocabulary) or not fair(table):
            suspect = True  # which row it is, and whether a row is wrong at all, is found out below
            continue
        ids = [id_lists(table[name]) for name in kind.ids]
        digest.update(as_bytes(ids))
        longest = max(longest, int(np.sum([column.lengths for column in ids], axis=0).max(initial=0)))
        if "id" in table.column_names:
            names.append(hashes(string_bytes(table["id"])))
    if rows != shards.counts[source]:
        raise InputError(f"{path} is not a Parquet file: it has {rows:,} rows, and says {shards.counts[source]:,}")
    if names and len(repeated_hashes(np.concatenate(names))):
        suspect = True
    return _one_by_one(kind, scan(path, vocabulary)) if suspect else (digest.hexdigest()[:16], longest)


def _one_by_one(kind: RecordType, found: Iterator[tuple[str, Any]]) -> tuple[str, int]:
    """The same, row by row. Raises the first refusal."""
    longest = 0

    def ids() -> Iterator[list[np.ndarray]]:
        nonlocal longest
        for _, record in found:
            if isinstance(record, InputError):
                raise record
            row = [getattr(record, name) for name in kind.ids]
            longest = max(longest, sum(map(len, row)))
            yield row

    return fingerprint_of_rows(ids()), longest


def fingerprint_of_rows(rows: Iterable[Sequence[np.ndarray]]) -> str:
    """The fingerprint of rows of ids: what `data.parquet.as_bytes` gives of them, digested."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(b"".join(len(ids).to_bytes(4) + np.asarray(ids, dtype="<i4").tobytes() for ids in row))
    return digest.hexdigest()[:16]


def _sound(table: pa.Table, kind: RecordType, vocabulary: Vocabulary) -> bool:
    """Whether nothing is missing, and every id is one of the vocabulary."""
    if any(table[name].null_count for name in table.column_names if name not in kind.optional):
        return False
    for name in kind.ids:
        array = combine_chunks(table[name])
        if array.values.null_count:
            return False
        ids = id_lists(array)
        if not ids.lengths.all() or not len(ids.values):
            return False
        if ids.values.min() < 0 or ids.values.max() >= vocabulary.size:
            return False
    return _heard(table, id_lists(table[kind.ids[0]]), vocabulary)


def _heard(table: pa.Table, prompts: RaggedColumn, vocabulary: Vocabulary) -> bool:
    """Whether those prompts that have slots, and no others, have features."""
    names = FEATURES.name in table.column_names
    given = (
        combine_chunks(table[FEATURES.name]).is_valid().to_numpy(zero_copy_only=False)
        if names
        else np.zeros(1, dtype=bool)
    )
    if vocabulary.slot is None:
        return not given.any()
    slots = np.logical_or.reduceat(prompts.values == vocabulary.slot, prompts.offsets[:-1])
    return bool((slots == given).all())


def _fair_prompts(table: pa.Table) -> bool:
    """Whether names are short and plainly printable, and facts have a value each."""
    names, facts = string_bytes(table["id"]), combine_chunks(table["facts"])
    if not names.lengths.all() or names.lengths.max(initial=0) > LONGEST_ID:
        return False
    if ((names.values < 0x20) | (names.values > 0x7E)).any():  # others may be printable too: each is looked at
        return False
    return _fair_map(facts)


def _fair_pairs(table: pa.Table) -> bool:
    """Whether replies differ and scores are plain."""
    chosen, rejected = id_lists(table["chosen_ids"]), id_lists(table["rejected_ids"])
    same = np.flatnonzero(chosen.lengths == rejected.lengths)
    if any(np.array_equal(chosen.row(row), rejected.row(row)) for row in same):
        return False
    for name in ("chosen_score", "rejected_score"):
        if name in table.column_names:
            scores = combine_chunks(table[name]).drop_null().to_numpy()
            if not np.isfinite(scores).all():
                return False
    maps = [combine_chunks(table[n]) for n in ("scores_chosen", "scores_rejected") if n in table.column_names]
    return all(_fair_map(column) and np.isfinite(column.items.to_numpy()).all() for column in maps)


def _fair_map(column: pa.MapArray) -> bool:
    """Whether every name has a value, and none comes twice in a row."""
    if column.items.null_count or column.null_count:
        return False
    offsets = column.offsets.to_numpy()
    keys = string_bytes(column.keys.slice(offsets[0], offsets[-1] - offsets[0]))
    row = np.repeat(np.arange(len(column), dtype=np.uint64), np.diff(offsets))
    # By their hashes, which the row's number moves apart from those of the same name in other rows.
    return not len(repeated_hashes(hashes(keys) + row * np.uint64(0x9E3779B97F4A7C15)))


def _refuse_twice(shards: Dataset[Prompt], rows: np.ndarray) -> None:
    """Raises InputError when two of these rows have the same id."""
    seen: dict[str, int] = {}
    for row in rows.tolist():
        first = seen.setdefault(shards[row].id, row)
        if first != row:
            raise InputError(
                f"{shards.place(row)}: field 'id' is {shards[row].id!r}, as in {shards.place(first)}; ids must differ"
            )
