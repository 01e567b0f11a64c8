"""Sends weights: one safetensors file on a memory file system for each version (read by `rollout/receive.py`)."""

import os
import tempfile
from collections.abc import Iterator
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


class SharedMemorySender:
    """Writes each version beside the last and removes the older ones."""

    def __init__(self, run: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix=f"duet-{run}-", dir=memory_directory()))
        self._current: Path | None = None

    def send(self, weights: dict[str, torch.Tensor], version: int) -> tuple[Path, int]:
        """Returns the file and its size in bytes. The file of the version before is removed."""
        path = self._directory / f"{version:06d}.safetensors"
        save_file({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}, path)
        if self._current is not None:
            self._current.unlink(missing_ok=True)
        self._current = path
        return path, path.stat().st_size

    def close(self) -> None:
        if self._current is not None:
            self._current.unlink(missing_ok=True)
        if self._directory.is_dir():
            self._directory.rmdir()
