"""What a folder of prepared data says of itself, so that a start need not look at every row again.

    DIR/manifest.json           this; written last
    DIR/prompts/*.parquet       and demonstrations/, pairs/ where there are any
    DIR/refused.jsonl           rows that could not be used, and why

`data.prepare` writes it. Rows of a prepared folder were checked when they were written: they have ids of the
vocabulary, names of their own, and replies that follow the family's structure.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import check_exists, parse_json, read_text
from speech.vocabulary import Vocabulary

NAME = "manifest.json"
KIND, FORMAT = "duet prepared data", 1


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """A file."""

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PreparedFolder:
    """A folder of Parquet files."""

    rows: int
    mark: str
    """Fingerprint of its ids, as `data.open_dataset` computes it."""
    longest: int
    """Ids of the row that has most, all its columns of ids together."""
    parts: list[ManifestEntry]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was made of what."""

    inputs: str
    """Mark of all that decides what is written: source files, codec, tokenizer, family, lengths."""
    recordings: str
    """Mark of the sound files that rows name: their names, sizes and times."""
    family: str
    codec: str
    """Its version."""
    tokenizer: str
    """`fingerprint_of` the vocabulary."""
    rows: int
    """Of the source, those that were refused included."""
    refused: dict[str, int]
    """Rows that were refused, by reason."""
    folders: dict[str, PreparedFolder] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        aside = folder / f"{NAME}.part"
        aside.write_text(json.dumps({"kind": KIND, "format": FORMAT} | asdict(self), indent=1), encoding="utf-8")
        aside.replace(folder / NAME)


def fingerprint_of(vocabulary: Vocabulary) -> str:
    """Differs whenever the same text or code could have another id."""
    layout = (vocabulary.size, vocabulary.speech_first, vocabulary.codebook, vocabulary.end_reply, vocabulary.pad)
    said = json.dumps(layout) + vocabulary.tokenizer.to_str()
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder; None when there is none of ours. Raises InputError for one that cannot be read."""
    path = folder / NAME
    if not check_exists(path):
        return None
    try:
        found = parse_json(read_text(path), str(path))
    except InputError:  # files of this name are common
        return None
    if not isinstance(found, dict) or found.pop("kind", None) != KIND:
        return None
    try:
        if found.pop("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        folders = {
            name: PreparedFolder(**(of | {"parts": [ManifestEntry(**part) for part in of["parts"]]}))
            for name, of in found.pop("folders").items()
        }
        return Manifest(**found, folders=folders)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a manifest of prepared data: {error}; prepare it again") from error


def read_prepared(folder: Path, vocabulary: Vocabulary) -> tuple[Manifest, PreparedFolder] | None:
    """What the manifest beside a folder of Parquet says of it; None when there is none that does.

    Raises InputError when the files are not those that it names, or are of another tokenizer.
    """
    manifest = None if check_exists(folder) else read_manifest(folder.parent)
    found = manifest.folders.get(folder.name) if manifest else None
    if manifest is None or found is None:
        return None
    if manifest.tokenizer != fingerprint_of(vocabulary):
        raise InputError(f"{folder} was prepared for another tokenizer than the checkpoint's; prepare it again")
    named = {part.name for part in found.parts}
    if strange := sorted(file.name for file in folder.glob("*.parquet") if file.name not in named):
        raise InputError(f"{folder / strange[0]} is not named in {folder.parent / NAME}; prepare the data again")
    for part in found.parts:
        path = folder / part.name
        size, rows = (path.stat().st_size, _rows(path)) if check_exists(path) else (0, 0)
        if (size, rows) != (part.bytes, part.rows):
            raise InputError(
                f"{path} has {rows:,} rows in {size:,} bytes, and {folder.parent / NAME} says {part.rows:,} rows in "
                f"{part.bytes:,} bytes; prepare the data again"
            )
    return manifest, found


def _rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
