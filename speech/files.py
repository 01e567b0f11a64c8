"""Files that a user supplies: whether they are there, and JSON that says what is wrong with it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speech.errors import InputError


def there(path: Path) -> bool:
    """Whether this is a file. A name that no file can have is none, where `Path.is_file` may raise."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def text(path: Path) -> str:
    """The content of a text file. Raises InputError when it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error


def parsed(content: str, place: str) -> Any:
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


def repeated(names: Iterable[Any]) -> Any | None:
    """The first name that appears for the second time; None when all differ."""
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as a dict. json would keep the last of two values silently."""
    twice = repeated(name for name, _ in pairs)
    if twice is not None:
        raise ValueError(f"the field {twice!r} appears twice")
    return dict(pairs)
