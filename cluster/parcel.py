"""A version of the weights on its way from the learner to the rollout workers: what a sender hands to receivers."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """The weights themselves stay where the sender put them: in a file, or in pieces in Ray's object store."""

    version: int
    size: int
    """Bytes of weights."""
    whole: bool
    """Whether every parameter is in it; else those that are not are as in the checkpoint that everybody started
    from."""
    path: Path | None = None
    """One safetensors file."""
    pieces: tuple[Any, ...] = ()
    """References to the parts of a safetensors file each, uint8 arrays, in order. Ray keeps a piece for as long as
    somebody holds a reference to it."""


def memory_directory() -> Path:
    """The shared-memory file system where there is one, else the temporary directory."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def write_all(descriptor: int, part: Any, offset: int) -> int:
    """Writes a buffer of bytes at this place of a file, and returns where it ends. Raises OSError."""
    view = memoryview(part)
    done = 0
    while done < len(view):  # one call takes 2 GiB at most
        done += os.pwrite(descriptor, view[done:], offset + done)
    return offset + done
