"""Reads user files with precise errors, and keeps file names from data below a folder."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import InputError


def check_exists(path: Path) -> bool:
    """Return True if a path is a file. Invalid names return False, where `Path.is_file` may raise."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """Read a text file. Raise InputError if it is unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error


def parse_json(content: str, place: str) -> Any:
    """Parse JSON. Raise InputError also for duplicate names in an object and for lone surrogates.

    place: file and line, for the message.
    """
    try:
        found = json.loads(content, object_pairs_hook=_distinct)
        content.encode()
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise InputError(f"{place} is not usable JSON: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{place} is not usable JSON: it holds half a character (a lone surrogate)") from error
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    return found


def find_duplicate(names: Iterable[Any]) -> Any | None:
    """Return the first duplicate; None if all differ."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object's dict. json would silently keep the last of duplicate values."""
    duplicate = find_duplicate(name for name, _ in pairs)
    if duplicate is not None:
        raise ValueError(f"field {duplicate!r} appears twice")
    return dict(pairs)


MAX_NAME = 80
"""Characters of a name that `safe_name` keeps."""


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


_DIGEST = re.compile(r"(.*-)?[0-9a-f]{12}")
"""Names with a digest. Texts of this form get a digest too."""


def resolve_within(root: Path, path: str | Path) -> Path:
    """Resolve a path from a data row, relative to `root` or absolute, following symbolic links.

    Raises InputError if the result is not below `root` (through "..", an absolute path, or a link), or the path is
    invalid. Does not check that the file exists.
    """
    if not str(path) or "\0" in str(path):
        raise InputError(f"{str(path)!r} is not the name of a file")
    base = root.resolve()
    try:
        found = (base / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, or a name that is too long
        raise InputError(f"{str(path)!r} is not the name of a file below {base}: {error}") from error
    if found == base or not found.is_relative_to(base):
        raise InputError(
            f"{str(path)!r} leads to {found}, which is not below {base}. Data may name only files below it"
        )
    return found


def safe_name(text: str) -> str:
    """Return a file name for a text from data: the text itself if it is plain, otherwise its plain characters and a
    digest of the whole text. Different texts get different names."""
    if _PLAIN.fullmatch(text) and len(text) <= MAX_NAME and not _DIGEST.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:MAX_NAME]
    return f"{plain}-{digest}" if plain else digest
