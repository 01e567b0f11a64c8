"""Dialogues from a dataset that Hugging Face `datasets` saved to disk: Parquet of our schema, with sounds as files."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import check_exists, resolve_within
from data.dialogues import DIALOGUES
from data.slices import slice_digest

MARK = "converted.json"
ROWS, GROUP = 4096, 256
"""Rows of a file and of a row group."""
AUDIO = ("sft_target_audio", "rejected_audio", "question_audio")
"""Fields of one recording; `audios` has several."""
FIELDS = (*DIALOGUES.names, "question_audio")
"""question_audio: a recording of the question, for datasets without `messages`."""
NUMBERS = ("chosen_score", "rejected_score")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
"""Other names of roles, as in ShareGPT's form of dialogues."""


def convert(source: Path, folder: Path, columns: Sequence[str], split: str | None, root: Path | None) -> str:
    """Writes folder/part-*.parquet and folder/audio/, unless that was done. Returns what became of it, in words.

    columns: FIELD=COLUMN; other fields come from the column of their own name, if there is one. split: of a
    `DatasetDict`. root: the folder that names of sound files start from; None: the dataset's own. Raises InputError.
    """
    dataset = _opened(source, split)
    mapping = _mapping(columns, dataset.column_names, source)
    files = sorted(path for path in source.rglob("*") if check_exists(path))
    said = [sorted(mapping.items()), split, str(root), [[str(path), slice_digest(path)] for path in files]]
    mark = {"mark": hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]}
    if check_exists(folder / MARK) and json.loads((folder / MARK).read_text()) == mark:
        return f"converted before, {folder}"
    if folder.exists() and not check_exists(folder / MARK) and not check_exists(folder / f"{MARK}.part"):
        raise InputError(f"--to: {folder} is there, and `duet prepare` did not make it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / f"{MARK}.part").write_text(json.dumps(mark))
    rows = _write(folder, _rows(dataset, mapping, folder, root or source))
    if not rows:
        raise InputError(f"{source} has no rows")
    (folder / f"{MARK}.part").rename(folder / MARK)
    return f"{rows:,} rows converted to {folder}"


def _opened(source: Path, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError("--from-hf needs the package `datasets`, which is not installed") from error
    if not source.is_dir():
        raise InputError(f"--from-hf: {source} is no folder that a dataset was saved to")
    try:
        found = datasets.load_from_disk(str(source))
    except Exception as error:  # what datasets and fsspec raise comes in many classes
        raise InputError(f"--from-hf: {source} is no dataset that was saved to disk: {error}") from error
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split not in found:
            raise InputError(f"--split: {source} has the splits {', '.join(found)}; got {split or 'none'}")
        return found[split]
    if split is not None:
        raise InputError(f"--split: {split!r} is given, and {source} has no splits")
    return found


def _mapping(columns: Sequence[str], present: Sequence[str], source: Path) -> dict[str, str]:
    """The column of each field."""
    mapping = {name: name for name in FIELDS if name in present}
    for text in columns:
        field, equals, column = text.partition("=")
        if not equals or (field not in FIELDS and not field.removeprefix("facts.") != field):
            raise InputError(f"--column: {text!r} is not possible; FIELD=COLUMN, a field of {', '.join(FIELDS)}")
        if column not in present:
            raise InputError(f"--column: {source} has no column {column!r}; it has {', '.join(present)}")
        mapping[field] = column
    if not {"messages", "question_audio", "question_text"} & set(mapping):
        raise InputError(
            f"--column: {source} has no column messages, question_audio or question_text; name those that are to be, "
            f"of {', '.join(present)}"
        )
    return mapping


def _rows(dataset: Any, mapping: Mapping[str, str], folder: Path, root: Path) -> Iterator[dict[str, Any]]:
    # As Arrow, sounds come as their bytes, without being decoded.
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=GROUP):
        for raw in table.select(sorted(set(mapping.values()))).to_pylist():
            number += 1
            given = {field: _labelled(dataset, column, raw[column]) for field, column in mapping.items()}
            try:
                yield _row(given, _Sounds(folder, root, number))
            except InputError:
                raise
            except (AttributeError, TypeError, ValueError) as error:
                raise InputError(f"--from-hf: row {number} does not fit the fields: {error}") from error


def _labelled(dataset: Any, column: str, value: Any) -> Any:
    """A class by its name instead of its number."""
    feature = dataset.features.get(column)
    return feature.int2str(value) if value is not None and hasattr(feature, "int2str") else value


def _row(given: Mapping[str, Any], sounds: "_Sounds") -> dict[str, Any]:
    row: dict[str, Any] = {"facts": {}}
    for field, value in given.items():
        if value is None:
            continue
        if field.startswith("facts."):
            row["facts"][field.removeprefix("facts.")] = str(value)
        elif field == "facts":
            row["facts"] |= {name: str(one) for name, one in dict(value).items() if one is not None}
        elif field == "messages":
            row["messages"] = [_message(one) for one in value]
        elif field == "audios":
            row["audios"] = [sounds.file(one, f"audio{place}") for place, one in enumerate(value)]
        elif field in AUDIO:
            row[field] = sounds.file(value, field)
        else:
            row[field] = float(value) if field in NUMBERS else str(value)
    asked = row.pop("question_audio", None)
    if "messages" not in row:
        row["messages"] = [{"role": "user", "content": "<|audio|>" if asked else row.get("question_text") or ""}]
        row["audios"] = [asked] if asked else []
    return row


def _message(one: Mapping[str, Any]) -> dict[str, str]:
    role = str(one.get("role", one.get("from")))
    return {"role": ROLES.get(role, role), "content": str(one.get("content", one.get("value", "")))}


class _Sounds:
    """Sound files of one row."""

    def __init__(self, folder: Path, root: Path, number: int) -> None:
        self._folder, self._root, self._number = folder, root, number

    def file(self, value: Any, field: str) -> str | None:
        """The name of a recording below the folder, written there: of bytes, or of a file below the root."""
        given = value if isinstance(value, dict) else {"path": value, "bytes": None}
        name, content = given.get("path"), given.get("bytes")
        if content is None and name is None:
            return None
        if content is None:
            content = self._read(str(name))
        ending = Path(str(name or "")).suffix or ".wav"
        below = Path("audio") / f"{self._number // 1000:06d}" / f"{self._number:09d}-{field}{ending}"
        (self._folder / below).parent.mkdir(parents=True, exist_ok=True)
        (self._folder / below).write_bytes(content)
        return str(below)

    def _read(self, name: str) -> bytes:
        try:
            return resolve_within(self._root, name).read_bytes()
        except (InputError, OSError) as error:
            raise InputError(f"--from-hf: row {self._number} names a recording that cannot be read: {error}") from error


def _write(folder: Path, rows: Iterator[dict[str, Any]]) -> int:
    count, waiting, writer = 0, list[dict[str, Any]](), None
    try:
        for row in rows:
            if writer is None:
                path = folder / f"part-{count // ROWS:06d}.parquet"
                writer = pq.ParquetWriter(path, DIALOGUES, compression="zstd")
            waiting.append(row | {"facts": list(row["facts"].items())})
            count += 1
            if len(waiting) == GROUP:
                writer.write_table(pa.Table.from_pylist(waiting, schema=DIALOGUES))
                waiting.clear()
            if count % ROWS == 0:
                writer.close()
                writer = None
        if writer is not None and waiting:
            writer.write_table(pa.Table.from_pylist(waiting, schema=DIALOGUES))
    finally:
        if writer is not None:
            writer.close()
    return count
