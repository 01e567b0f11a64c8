"""Files that a user supplies: whether they are there, and JSON that says what is wrong with it.

File names that come from data: they name files below a folder, and nothing else.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import InputError


def check_exists(path: Path) -> bool:
    """Whether this is a file. A name that no file can have is none, where `Path.is_file` may raise."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """The content of a text file. Raises InputError when it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error


def parse_json(content: str, place: str) -> Any:
    """JSON in which no name comes twice in an object and no text is broken off amid a character.

    place: what to call it in an InputError, a file and its line.
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
    """The first name that appears for the second time; None when all differ."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as a dict. json would keep the last of two values silently."""
    twice = find_duplicate(name for name, _ in pairs)
    if twice is not None:
        raise ValueError(f"the field {twice!r} appears twice")
    return dict(pairs)


LONGEST = 80
"""Characters of a name that `safe_name` keeps."""


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


_DIGEST = re.compile(r"(.*-)?[0-9a-f]{12}")
"""What a name with a digest looks like: a text that looks like it gets one as well."""


def resolve_within(root: Path, path: str | Path) -> Path:
    """The file that a data row means by `path`, relative to `root` or absolute: resolved, with symbolic links followed.

    Raises InputError when it is not below `root` (by "..", by an absolute path, by a link that leads out), or is no
    path at all. Whether it exists is for the caller to find out.
    """
    if not str(path) or "\0" in str(path):
        raise InputError(f"{str(path)!r} is not the name of a file")
    base = root.resolve()
    try:
        found = (base / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links; a name that is too long
        raise InputError(f"{str(path)!r} is not the name of a file below {base}: {error}") from error
    if found == base or not found.is_relative_to(base):
        raise InputError(
            f"{str(path)!r} leads to {found}, which is not below {base}; data may name files below it only"
        )
    return found


def safe_name(text: str) -> str:
    """A file name for something that data calls `read_text`: the text itself where it is plain, else what is plain in
    it with a digest of the whole, so that two texts never share a name."""
    if _PLAIN.fullmatch(text) and len(text) <= LONGEST and not _DIGEST.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:LONGEST]
    return f"{plain}-{digest}" if plain else digest
