"""Checkpoints of a run: whole or not there, and the last good one is never touched.

    runs/NAME/checkpoints/000012/   model.safetensors, tokenizer, optimizer/, controller.json

A checkpoint is written aside, flushed to the disk, and renamed. `controller.json` holds what the controller must
remember; it is written last, so that a folder with it is a whole one, unless the disk lost or changed something since.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open

from controller.mix import MODES, MixState
from speech.errors import InputError

STATE = "controller.json"
COUNTS = ("iteration", "weight_version", "prompts", "demonstrations")
"""Whole numbers that `Loop.state` remembers, beside λ."""


class NotSaved(RuntimeError):
    """A checkpoint could not be written. The ones before it are as they were."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    directory: Path
    iteration: int
    """The last iteration that it knows of."""
    state: dict
    """What `Loop.state` said."""


class Checkpoints:
    """Those of one run."""

    def __init__(self, run: Path) -> None:
        self._directory = run / "checkpoints"

    def write(self, iteration: int, state: dict, fill: Callable[[Path], None], *, keep: int = 0) -> Path:
        """Adds a checkpoint, and then removes all but the `keep` newest (0 keeps all).

        fill: writes the model and the optimiser into a folder. Raises NotSaved when the disk does not take it; whatever
        else `fill` raises passes through. In either case the checkpoints before it are untouched.
        """
        whole = self._directory / f"{iteration:06d}"
        aside = self._directory / f".{iteration:06d}.part"
        for left in self._directory.glob(".*.part"):  # of a controller that died meanwhile
            shutil.rmtree(left, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            fill(aside)
            (aside / STATE).write_text(json.dumps(state | {"iteration": iteration}, indent=2))
            _flush(aside)
            if whole.exists():  # of a run that went back before it, or a damaged one
                shutil.rmtree(whole)
            aside.rename(whole)
            _flush_folder(self._directory)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if reason := _refusal(error):
                raise NotSaved(f"the checkpoint of iteration {iteration} could not be written: {reason}") from error
            raise
        for later in self._folders():  # what the run went back before, or could not use
            if int(later.name) > iteration:
                shutil.rmtree(later, ignore_errors=True)
        if keep:
            for old in self._folders()[keep:]:
                shutil.rmtree(old, ignore_errors=True)
        return whole

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when none was ever written. Raises InputError when there are some and all
        are damaged: to begin again would throw away what was done."""
        whole, folders = self.whole(), self._folders()
        if folders and not whole:
            names = ", ".join(folder.name for folder in folders)
            raise InputError(f"{self._directory} holds no whole checkpoint to go on from: {names} are damaged")
        return whole[0] if whole else None

    def whole(self) -> list[Checkpoint]:
        """All that are whole, newest first."""
        return [found for directory in self._folders() if (found := read(directory)) is not None]

    def _folders(self) -> list[Path]:
        """Newest first."""
        folders = [path for path in self._directory.glob("[0-9]*") if path.name.isdecimal()]
        return sorted(folders, key=lambda path: int(path.name), reverse=True)


def read(directory: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None when it is not a whole one: of a version that did not write aside, or damaged.

    Looks at what the controller remembers and at the headers of the weights, which say how long their files must be.
    """
    try:
        state = json.loads((directory / STATE).read_bytes())
        if not _sound(state) or state["iteration"] != int(directory.name):
            return None
        for file in directory.glob("*.safetensors"):
            with safe_open(file, framework="numpy"):
                pass
    except (OSError, ValueError, RecursionError, SafetensorError):
        return None
    return Checkpoint(directory=directory, iteration=state["iteration"], state=state)


def _sound(state: object) -> bool:
    """Whether everything is there, and of its type, that a run goes on from."""
    if not isinstance(state, dict) or not all(type(state.get(name)) is int and state[name] >= 0 for name in COUNTS):
        return False
    data = state.get("data")
    if not isinstance(data, dict) or not all(isinstance(mark, str) for mark in data.values()):
        return False
    mix = state.get("mix")
    if not isinstance(mix, dict) or set(mix) != {f.name for f in fields(MixState)}:
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


def _refusal(error: BaseException) -> str | None:
    """What the disk said, if it was the disk; it may have spoken to a learner rank, of whom only words arrive."""
    if "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return str(error) if isinstance(error, OSError) else None


def _flush(folder: Path) -> None:
    """Every file below, and every folder, onto the disk."""
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
