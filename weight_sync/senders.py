"""Senders that write each weight version to safetensors files, one tensor at a time.

`weight_sync/receiver.py` fetches the files, and `weight_sync/vllm_receiver.py` loads them. A file's layout is known
before its tensors are gathered:

    8 bytes: length of the header, little-endian · the header, JSON · the bytes of all tensors, without gaps

The format: https://github.com/huggingface/safetensors#format
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
"""Torch dtype → safetensors dtype."""


@dataclass(frozen=True)
class FileEntry:
    """Metadata of a tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def from_tensor(cls, name: str, tensor: torch.Tensor) -> "FileEntry":
        """Describe a tensor. The shape is that of the full tensor, also if ZeRO-3 partitions it."""
        return cls(name, tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """Layout of a safetensors file."""

    header: bytes
    """The bytes before the tensors, including the header's length."""
    offsets: dict[str, int]
    """Offset of each tensor from the start of the file, in bytes, ascending."""
    size: int
    """Size of the file in bytes."""


def plan_layout(entries: Sequence[FileEntry]) -> FileLayout:
    """Plan a file. Wide types come first, so that each tensor is aligned. Raises KeyError for an unsupported dtype."""
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
    """Return a tensor's bytes, uint8: a view if it is contiguous in host memory, else a copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


Groups = Sequence[Sequence[FileEntry]]
"""Metadata of the tensors of each group (`WeightSource.groups`)."""


class FileSender(Protocol):
    """Transport of weights, run by rank 0. It keeps no copy of them."""

    def send(self, groups: Groups, weights: Iterable[dict[str, Tensor]], version: int, *, whole: bool) -> WeightUpdate:
        """Publish a version for workers to fetch, and release the previous one.

        Args:
            groups: Metadata of the tensors.
            weights: The tensors of each group. A group is not used after the next was requested.
            whole: True if every parameter is included.

        Raises OSError.
        """

    def close(self) -> None:
        """Release everything."""


def remove_stale_directories(run: str) -> None:
    """Remove the shared-memory directories of dead senders of a run: those whose lock is free."""
    for directory in memory_directory().glob(f"duet-{run}-*"):
        with suppress(OSError):  # belongs to another user, or was just removed
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
            finally:
                os.close(descriptor)


class DirectorySender:
    """Writes each version into a folder that all nodes see. A version is removed once the next is complete."""

    def __init__(self, directory: Path) -> None:
        """directory: Used by this sender only. Leftovers of a dead sender are removed."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)  # on some file systems, files that are being read stay
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
        """Write a file and rename it into place once complete. Return its size in bytes."""
        planned = plan_layout([entry for group in groups for entry in group])
        file = os.open(self._aside, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, planned.size)
            write_all(file, planned.header, 0)
            for group in weights:
                for name, tensor in group.items():
                    write_all(file, as_bytes(tensor), planned.offsets[name])
                del tensor  # otherwise it would stay in memory while the next group is gathered
        finally:
            os.close(file)
        self._aside.replace(path)
        return planned.size

    @property
    def _aside(self) -> Path:
        """File of the version being written."""
        return self._directory / "part"

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class SharedMemorySender(DirectorySender):
    """Writes into shared memory, in a directory per sender.

    Each version overwrites the previous one: memory never holds two, and reusing pages takes a third of the time of new
    ones. So a version can be read only until the next is sent. A late worker may read neither, but it is then asked for
    the next version, and its answer about the previous one is ignored.

    The directory is locked while the process lives. The operating system releases the lock when the process ends, so
    `remove_stale_directories` can recognize leftovers.
    """

    def __init__(self, run: str) -> None:
        remove_stale_directories(run)
        # Locked before it gets the name that `remove_stale_directories` looks for.
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
    """Puts each version into Ray's object store, which copies it to other nodes. Each group is one piece.

    This process owns the pieces, which are lost when it dies. Ray frees a version once no reference is left: when the
    workers have received the next version.
    """

    def __init__(self) -> None:
        self._pieces: tuple = ()

    def send(self, groups: Groups, weights: Iterable[dict[str, Tensor]], version: int, *, whole: bool) -> WeightUpdate:
        import ray

        self._pieces = ()
        size, pieces = 0, []
        for group, tensors in zip(groups, weights, strict=True):
            planned = plan_layout(group)
            parts = [np.frombuffer(planned.header, np.uint8), *(as_bytes(tensors[name]) for name in planned.offsets)]
            pieces.append(ray.put(parts))
            del parts  # otherwise they would stay in memory while the next group is gathered
            size += planned.size
        self._pieces = tuple(pieces)
        return WeightUpdate(version=version, size=size, whole=whole, pieces=self._pieces)

    def close(self) -> None:
        self._pieces = ()


def new_sender(exchange: Exchange, run: str, folder: Path | None) -> FileSender:
    """Make the sender of an exchange. folder: This run's folder for weights, for exchange "filesystem"."""
    if exchange == "object_store":
        return ObjectSender()
    if exchange == "shm":
        return SharedMemorySender(run)
    if exchange == "broadcast":
        raise ValueError("exchange 'broadcast' writes no files; use weight_sync.broadcast.BroadcastSender")
    if folder is None:
        raise ValueError("exchange 'filesystem' needs a folder")
    return DirectorySender(folder)
