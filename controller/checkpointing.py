"""Checkpoints of a run: written atomically, and older ones stay untouched until a new one is complete.

    runs/NAME/checkpoints/000012/   model.safetensors, tokenizer, optimizer/, controller.json

A checkpoint is written to a temporary folder, flushed to the disk and renamed. `controller.json` holds the state of the
controller. It is written last, so a folder that contains it is complete unless the disk failed later.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.errors import InputError
from configs.schema import MODES
from controller.mix_ratio import MixRatioState

STATE = "controller.json"
COUNTS = ("iteration", "weight_version", "prompts", "demonstrations")
"""Integers in `TrainingLoop.state`."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written. Older ones are unchanged."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    directory: Path
    iteration: int
    """Last iteration before the checkpoint."""
    state: dict
    """Result of `TrainingLoop.state`."""


class CheckpointManager:
    """Checkpoints of one run."""

    def __init__(self, run: Path) -> None:
        self._directory = run / "checkpoints"

    def write(self, iteration: int, state: dict, fill: Callable[[Path], None], *, keep: int = 0) -> Path:
        """Write a checkpoint, then remove all but the `keep` newest (0 keeps all). Errors leave older ones unchanged.

        fill: writes the model and the optimizer into a folder. Its errors other than of the disk pass through.

        Raises:
            CheckpointError: The disk failed or is full.
        """
        target = self._directory / f"{iteration:06d}"
        partial = self._directory / f".{iteration:06d}.part"
        for left in self._directory.glob(".*.part"):  # left by a controller that died
            shutil.rmtree(left, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            fill(partial)
            (partial / STATE).write_text(json.dumps(state | {"iteration": iteration}, indent=2))
            _flush(partial)
            if target.exists():  # damaged, or written before the run went back
                shutil.rmtree(target)
            partial.rename(target)
            _flush_folder(self._directory)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if reason := _disk_error(error):
                raise CheckpointError(
                    f"the checkpoint of iteration {iteration} could not be written: {reason}"
                ) from error
            raise
        for later in self._folders():  # unusable, or written before the run went back
            if int(later.name) > iteration:
                shutil.rmtree(later, ignore_errors=True)
        if keep:
            for old in self._folders()[keep:]:
                shutil.rmtree(old, ignore_errors=True)
        return target

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint; None if there is none. Raise InputError if all are damaged: a restart
        from the beginning would lose the progress."""
        complete, folders = self.complete(), self._folders()
        if folders and not complete:
            names = ", ".join(folder.name for folder in folders)
            raise InputError(f"{self._directory} has no complete checkpoint to resume from: {names} are damaged")
        return complete[0] if complete else None

    def complete(self) -> list[Checkpoint]:
        """Return all complete checkpoints, newest first."""
        return [found for directory in self._folders() if (found := read_checkpoint(directory)) is not None]

    def _folders(self) -> list[Path]:
        """Return the folders, newest first."""
        folders = [path for path in self._directory.glob("[0-9]*") if path.name.isdecimal()]
        return sorted(folders, key=lambda path: int(path.name), reverse=True)


def read_checkpoint(directory: Path) -> Checkpoint | None:
    """Read the checkpoint in a folder. Return None if it is incomplete or damaged.

    Checks the controller's state, and the headers of the weights, which contain the length of their files.
    """
    try:
        state = json.loads((directory / STATE).read_bytes())
        if not _is_valid(state) or state["iteration"] != int(directory.name):
            return None
        for file in directory.glob("*.safetensors"):
            with safe_open(file, framework="numpy"):
                pass
    except (OSError, ValueError, RecursionError, SafetensorError):
        return None
    return Checkpoint(directory=directory, iteration=state["iteration"], state=state)


def _is_valid(state: object) -> bool:
    """Return True if a state has all entries, of the right types."""
    if not isinstance(state, dict) or not all(type(state.get(name)) is int and state[name] >= 0 for name in COUNTS):
        return False
    data = state.get("data")
    if not isinstance(data, dict) or not all(isinstance(fingerprint, str) for fingerprint in data.values()):
        return False
    mix = state.get("mix")
    if not isinstance(mix, dict) or set(mix) != {f.name for f in fields(MixRatioState)}:
        return False
    smoothed, override = mix["smoothed"], mix["override"]
    return (
        type(mix["updates"]) is int
        and mix["updates"] >= 0
        and (smoothed is None or _share(smoothed))
        and (override is None or (override in MODES if isinstance(override, str) else _share(override)))
    )


def _share(value: object) -> bool:
    return type(value) in (int, float) and 0.0 <= value <= 1.0


def _disk_error(error: BaseException) -> str | None:
    """Return the message of a disk error, else None. An error of a learner rank may arrive as text only."""
    if "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return str(error) if isinstance(error, OSError) else None


def _flush(folder: Path) -> None:
    """Flush every file and folder below to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
