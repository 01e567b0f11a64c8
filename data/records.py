from collections.abc import Callable, Iterable, Iterator, Sequence
from os.path import normpath
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from common.errors import InputError
from data.parquet import (
    batches,
    hashes,
    list_files,
    named_values,
    open_parquet,
    read_json_lines,
    read_rows,
    refuse_missing,
    repeated_hashes,
    string_bytes,
    within_file,
)
from speech.types import Demonstration, PreferencePair, Prompt
from speech.vocabulary import Vocabulary

PROMPTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("facts", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)


DEMONSTRATIONS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("reply_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("manner", pa.string(), nullable=False),
    ]
)


PAIRS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("chosen_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("rejected_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("chosen_score", pa.float32()),
        pa.field("rejected_score", pa.float32()),
        pa.field("scores_chosen", pa.map_(pa.string(), pa.float32()), nullable=False),
        pa.field("scores_rejected", pa.map_(pa.string(), pa.float32()), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
    ]
)


FEATURES = pa.field("features", pa.string())
"""A further column of all three, for prompts that have slots: the file of their encoder features, relative to the data
file's folder (`speech.audio`)."""


OPTIONAL = ("chosen_score", "rejected_score", "scores_chosen", "scores_rejected", "origin")
"""Columns of `PAIRS` that a file may lack, and values that it may leave out."""


HEARD = (FEATURES.name,)


Record = TypeVar("Record")


LONGEST_ID = 200
"""Bytes of a prompt's id, which names its recordings."""


def read_prompts(path: Path, vocabulary: Vocabulary) -> list[Prompt]:
    """Reads a Parquet file of prompts, or a folder of them.

    Raises InputError naming file and row for missing fields, foreign ids, and prompts of one name: what is recorded,
    dealt out and compared by the prompt's id must mean one prompt.
    """
    return _all(scan_prompts(path, vocabulary))


def read_demonstrations(path: Path, vocabulary: Vocabulary) -> list[Demonstration]:
    """Reads a Parquet file of demonstrations. Raises InputError naming file and row."""
    return _all(scan_demonstrations(path, vocabulary))


def scan_prompts(path: Path, vocabulary: Vocabulary) -> Iterator[tuple[str, Prompt | InputError]]:
    """(place, prompt) of each row, or why it is none. Raises InputError for a file that has no such rows at all."""
    seen, suspects = dict[str, str](), _suspects(path)

    def prompt(place: str, row: dict) -> Prompt:
        name = row["id"]
        if not name.isprintable() or not 0 < len(name.encode()) <= LONGEST_ID:
            raise InputError(f"{place}: field 'id' is {name!r}; expected 1 to {LONGEST_ID} printable bytes")
        if (suspects is None or (suspects and _hash(name) in suspects)) and seen.setdefault(name, place) != place:
            first = seen[name].removeprefix(f"{path} ")
            raise InputError(f"{place}: field 'id' is {name!r}, as in {first}; ids must differ")
        ids = _ids(row, "token_ids", place, vocabulary)
        features = _features(path, row, ids, place, vocabulary)
        return Prompt(id=name, token_ids=ids, text=row["text"], facts=_facts(row, place), features=features)

    return _each(read_rows(path, PROMPTS.append(FEATURES), HEARD), prompt, HEARD)


def _suspects(path: Path) -> set[int] | None:
    """Hashes of the ids that are there more than once, for which alone it must be kept where they were seen: a file may
    have more rows than there is memory for. None: not known, as the file cannot be read, which its rows will say."""
    found = []
    schema = pa.schema([PROMPTS.field("id")])
    try:
        for part in list_files(path):
            with open_parquet(part, schema) as file:
                found += [hashes(string_bytes(table["id"])) for table in batches(file, part, within_file(file, schema))]
    except InputError:
        return None
    return set(repeated_hashes(np.concatenate(found)).tolist()) if found else None


def _hash(name: str) -> int:
    return int(hashes(string_bytes(pa.array([name], pa.string())))[0])


def scan_demonstrations(path: Path, vocabulary: Vocabulary) -> Iterator[tuple[str, Demonstration | InputError]]:
    """(place, demonstration) of each row, or why it is none. Raises InputError for a file that has no such rows."""

    def demonstration(place: str, row: dict) -> Demonstration:
        ids = _ids(row, "prompt_ids", place, vocabulary)
        return Demonstration(
            prompt_id=row["prompt_id"],
            prompt_ids=ids,
            reply_ids=_ids(row, "reply_ids", place, vocabulary),
            text=row["text"],
            features=_features(path, row, ids, place, vocabulary),
        )

    return _each(read_rows(path, DEMONSTRATIONS.append(FEATURES), HEARD), demonstration, HEARD)


def scan_pairs(path: Path, vocabulary: Vocabulary) -> Iterator[tuple[str, PreferencePair | InputError]]:
    """(place, pair) of each row or line, or why it is none. Raises InputError for a file that has no such rows, and for
    a line that is not of the right types."""
    schema, optional = PAIRS.append(FEATURES), (*OPTIONAL, *HEARD)
    found = read_json_lines(path, schema, optional) if path.suffix == ".jsonl" else read_rows(path, schema, optional)
    return _each(found, lambda place, row: _pair(path, place, row, vocabulary), optional)


def _each(
    found: Iterable[tuple[str, dict]], make: Callable[[str, dict], Record], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Record | InputError]]:
    for place, row in found:
        try:
            refuse_missing(row, optional, place)
            record = make(place, row)
        except InputError as error:
            yield place, error
        else:
            yield place, record


def _all(found: Iterable[tuple[str, Record | InputError]]) -> list[Record]:
    """Every record. Raises the first refusal."""
    records = []
    for _, record in found:
        if isinstance(record, InputError):
            raise record
        records.append(record)
    return records


def read_pairs(path: Path, vocabulary: Vocabulary) -> list[PreferencePair]:
    """Reads preference pairs: Parquet of the schema `PAIRS`, or a JSON object a line when the name ends in .jsonl.

    A line has the columns as fields, scores by name as an object; empty lines are skipped. Scores and origin are
    optional in both forms. Raises InputError naming the file and the row or line for a missing field, foreign or no
    ids, a score that is no number, and two replies that are the same.
    """
    return _all(scan_pairs(path, vocabulary))


def _facts(row: dict, place: str) -> dict[str, str]:
    facts = named_values(row, "facts", place)
    for name, value in facts.items():
        if value is None:
            raise InputError(f"{place}: field 'facts' has no value for {name!r}; leave it out")
    return facts


def _features(path: Path, row: dict, ids: np.ndarray, place: str, vocabulary: Vocabulary) -> str | None:
    """Where they lie. Raises InputError for slots without features, and for features without slots."""
    slots = 0 if vocabulary.slot is None else int((ids == vocabulary.slot).sum())
    if bool(slots) != (row["features"] is not None):
        found = "no features" if slots else f"features {row['features']!r}"
        raise InputError(f"{place}: {found}, but its prompt has {slots} slots for frames of an encoder")
    return normpath(path.parent / row["features"]) if slots else None


def _pair(path: Path, place: str, row: dict, vocabulary: Vocabulary) -> PreferencePair:
    chosen, rejected = (_ids(row, name, place, vocabulary) for name in ("chosen_ids", "rejected_ids"))
    if np.array_equal(chosen, rejected):
        raise InputError(
            f"{place}: field 'rejected_ids' is the same as 'chosen_ids'; a pair needs two different replies"
        )
    scores = {name: named_values(row, name, place) for name in ("scores_chosen", "scores_rejected")}
    totals = {name: row[name] for name in ("chosen_score", "rejected_score") if row[name] is not None}
    for name, value in [*totals.items(), *((n, v) for n, by_name in scores.items() for v in by_name.values())]:
        if value is None or not np.isfinite(value):
            raise InputError(f"{place}: field {name!r} holds {value}, which is no score; leave out what is not known")
    ids = _ids(row, "prompt_ids", place, vocabulary)
    return PreferencePair(
        prompt_id=row["prompt_id"],
        prompt_ids=ids,
        chosen_ids=chosen,
        rejected_ids=rejected,
        chosen_score=totals.get("chosen_score"),
        rejected_score=totals.get("rejected_score"),
        scores_chosen=scores["scores_chosen"],
        scores_rejected=scores["scores_rejected"],
        origin=row["origin"] or "",
        features=_features(path, row, ids, place, vocabulary),
    )


def _ids(row: dict, name: str, place: str, vocabulary: Vocabulary) -> np.ndarray:
    if not row[name]:
        raise InputError(f"{place}: field {name!r} is empty")
    if None in row[name]:
        raise InputError(f"{place}: field {name!r} has a missing id at position {row[name].index(None)}")
    ids = np.asarray(row[name], dtype=np.int32)
    outside = (ids < 0) | (ids >= vocabulary.size)
    if outside.any():
        raise InputError(
            f"{place}: field {name!r} holds id {int(ids[outside][0])}, outside the vocabulary of {vocabulary.size}"
        )
    return ids
