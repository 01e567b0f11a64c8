"""How tensors lie in a safetensors file, known before any of them is at hand. Pure.

    8 bytes: length of the header, little-endian · the header, JSON · the bytes of all tensors, without gaps

The format: https://github.com/huggingface/safetensors#format

Sends weights: each version in safetensors files, of which the tensors are written one by one. The receiving end is
`weight_sync/vllm_receiver.py`.
"""

import fcntl
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from weight_sync.update import Exchange, WeightUpdate, memory_directory, write_all

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""What the format calls a type of number."""


@dataclass(frozen=True)
class FileEntry:
    """A tensor that will come."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> "FileEntry":
        """Of one that may be partitioned by ZeRO-3: its shape is that of the whole."""
        return cls(name, tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A file that will be."""

    header: bytes
    """All that comes before the tensors, its length included."""
    offsets: dict[str, int]
    """Where each tensor begins, bytes from the start of the file; in that order."""
    size: int
    """Bytes of the whole file."""


def layout(entries: Sequence[FileEntry]) -> FileLayout:
    """Wide numbers come first, so that each tensor is aligned to its own. Raises KeyError for a type that the format
    has not."""
    begin, places, fields = 0, {}, {}
    for entry in sorted(entries, key=lambda entry: -entry.dtype.itemsize):
        end = begin + entry.size
        fields[entry.name] = {"dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
        places[entry.name], begin = begin, end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    offsets = {name: len(header) + place for name, place in places.items()}
    return FileLayout(header=header, offsets=offsets, size=len(header) + begin)


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """Its bytes, uint8: a view where it lies in the memory of this machine without gaps, else a copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


Groups = Sequence[Sequence[FileEntry]]
"""What will come, as `weight_sync.source.WeightSource` has it."""


class FileSender(Protocol):
    """One way for weights to go. It is rank 0's, and keeps no copy of them."""

    def send(self, groups: Groups, weights: Iterable[dict[str, Tensor]], version: int, *, whole: bool) -> WeightUpdate:
        """Puts a version where workers can fetch it, and lets go of the one before. weights: the tensors of each group,
        which are not touched when the next is there. Raises OSError."""

    def close(self) -> None:
        """Lets go of everything."""


def sweep(run: str) -> None:
    """Removes what dead senders of a run left in memory: those whose lock is free. Living ones keep theirs."""
    for directory in memory_directory().glob(f"duet-{run}-*"):
        with suppress(OSError):  # another user's, or just removed
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
            finally:
                os.close(descriptor)


class DirectorySender:
    """Writes each version into a folder that all nodes see, beside the last, which may still be read, and removes the
    older ones."""

    def __init__(self, directory: Path) -> None:
        """directory: of this sender alone; what is in it was left by one that died."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)  # on some file systems what is still read somewhere stays
        self._directory = directory
        self._current: Path | None = None

    def send(self, groups: Groups, weights: Iterable[dict[str, Tensor]], version: int, *, whole: bool) -> WeightUpdate:
        path = self._directory / f"{version:06d}.safetensors"
        size = self._write(path, groups, weights)
        if self._current is not None and self._current != path:
            self._current.unlink(missing_ok=True)
        self._current = path
        return WeightUpdate(version=version, size=size, whole=whole, path=path)

    def _write(self, path: Path, groups: Groups, weights: Iterable[dict[str, Tensor]]) -> int:
        """Returns the size in bytes. The file appears whole, under its name."""
        planned = layout([entry for group in groups for entry in group])
        file = os.open(self._aside, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, planned.size)
            write_all(file, planned.header, 0)
            for group in weights:
                for name, tensor in group.items():
                    write_all(file, as_bytes(tensor), planned.offsets[name])
                del tensor  # or it would stay while the next group is gathered
        finally:
            os.close(file)
        self._aside.replace(path)
        return planned.size

    @property
    def _aside(self) -> Path:
        """A version that is being written."""
        return self._directory / "part"

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class SharedMemorySender(DirectorySender):
    """Writes into memory, where every node has a folder of its own for every sender.

    Each version is written over the one before: memory never holds two, and pages that are there already take a third
    of the time of new ones. So one is read until the next is sent, and no longer: a worker that is late reads neither,
    but then it has been asked to take the next, and its answer about the one before counts for nothing.

    The directory is locked for as long as the process lives: the system lets go of the lock however it ends, so that
    whoever comes later can tell what is left over (`sweep`).
    """

    def __init__(self, run: str) -> None:
        sweep(run)
        # Locked before it has the name that is swept.
        made = Path(tempfile.mkdtemp(prefix=".duet-", dir=memory_directory()))
        self._lock = os.open(made, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._directory = made.rename(made.with_name(f"duet-{run}-{made.name.removeprefix('.duet-')}"))
        self._current = None

    def send(self, groups: Groups, weights: Iterable[dict[str, Tensor]], version: int, *, whole: bool) -> WeightUpdate:
        if self._current is not None:
            self._current.replace(self._aside)
            self._current = None
        return super().send(groups, weights, version, whole=whole)

    def close(self) -> None:
        super().close()
        os.close(self._lock)


class ObjectSender:
    """Puts each version into Ray's object store, which carries it to other nodes; a group is a piece.

    This process owns the pieces: they go with it. Those of a version go when nobody holds it any more, which is when
    the workers have been given the next.
    """

    def __init__(self) -> None:
        self._pieces: tuple = ()

    def send(self, groups: Groups, weights: Iterable[dict[str, Tensor]], version: int, *, whole: bool) -> WeightUpdate:
        import ray

        self._pieces = ()
        size, pieces = 0, []
        for group, tensors in zip(groups, weights, strict=True):
            planned = layout(group)
            parts = [np.frombuffer(planned.header, np.uint8), *(as_bytes(tensors[name]) for name in planned.offsets)]
            pieces.append(ray.put(parts))
            del parts  # or they would stay while the next group is gathered
            size += planned.size
        self._pieces = tuple(pieces)
        return WeightUpdate(version=version, size=size, whole=whole, pieces=self._pieces)

    def close(self) -> None:
        self._pieces = ()


def new_sender(exchange: Exchange, run: str, folder: Path | None) -> FileSender:
    """folder: of this run, for weights alone, where the exchange is one."""
    if exchange == "object_store":
        return ObjectSender()
    if exchange == "shm":
        return SharedMemorySender(run)
    if exchange == "broadcast":
        raise ValueError("nothing of a broadcast lies anywhere: weight_sync.broadcast.BroadcastSender sends it")
    if folder is None:
        raise ValueError("exchange 'filesystem' needs a folder")
    return DirectorySender(folder)
