"""File names that come from data: they name files below a folder, and nothing else."""

import hashlib
import re
from pathlib import Path

from speech.errors import InputError

LONGEST = 80
"""Characters of a name that `safe_name` keeps."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"(.*-)?[0-9a-f]{12}")
"""What a name with a digest looks like: a text that looks like it gets one as well."""


def within(root: Path, path: str | Path) -> Path:
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
    """A file name for something that data calls `text`: the text itself where it is plain, else what is plain in it
    with a digest of the whole, so that two texts never share a name."""
    if _PLAIN.fullmatch(text) and len(text) <= LONGEST and not _DIGEST.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:LONGEST]
    return f"{plain}-{digest}" if plain else digest
