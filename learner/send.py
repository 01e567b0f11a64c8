"""Sends weights: one safetensors file for each version (read by `rollout/receive.py`), on the memory file system of
this node or in a folder that all nodes see."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def memory_directory() -> Path:
    """The shared-memory file system where there is one, else the temporary directory."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter under every name it has.

    Tied weights come under each of their names: an engine that misses `lm_head.weight` keeps its old output layer
    without complaint, and all log-probabilities are quietly wrong.
    """
    yield from model.named_parameters(remove_duplicate=False)


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
    """Writes each version beside the last and removes the older ones."""

    def __init__(self, directory: Path) -> None:
        """directory: of this sender alone; what is in it was left by one that died."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._directory = directory
        self._current: Path | None = None

    def send(self, weights: dict[str, torch.Tensor], version: int) -> tuple[Path, int]:
        """Returns the file and its size in bytes. The file of the version before is removed."""
        path = self._directory / f"{version:06d}.safetensors"
        save_file({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}, path)
        if self._current is not None and self._current != path:
            self._current.unlink(missing_ok=True)
        self._current = path
        return path, path.stat().st_size

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class SharedMemorySender(DirectorySender):
    """Writes into memory, where every node has a folder of its own for every sender.

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

    def close(self) -> None:
        super().close()
        os.close(self._lock)
