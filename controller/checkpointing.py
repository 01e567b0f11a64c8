"""Checkpoints of a run: whole or not there, and the last good one is never touched.

    runs/NAME/checkpoints/000012/   model.safetensors, tokenizer, optimizer/, controller.json

A checkpoint is written aside, flushed to the disk, and renamed. `controller.json` holds what the controller must
remember; it is written last, so that a folder with it is a whole one, unless the disk lost or changed something since.

Going on with a run: which of its settings may change, and what is refused.

A run that goes on is to be the run that it would have been. What decides its numbers is fixed; what decides only how
long it takes, or what is kept of it, may change.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from common.errors import InputError
from configs.load import load_config, make_absolute
from configs.schema import MODES, Config
from controller.mix_ratio import MixRatioState
from observability.run_directory import read_events, run_directory

STATE = "controller.json"


COUNTS = ("iteration", "weight_version", "prompts", "demonstrations")
"""Whole numbers that `TrainingLoop.state` remembers, beside λ."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written. The ones before it are as they were."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    directory: Path
    iteration: int
    """The last iteration that it knows of."""
    state: dict
    """What `TrainingLoop.state` said."""


class CheckpointManager:
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
                raise CheckpointError(
                    f"the checkpoint of iteration {iteration} could not be written: {reason}"
                ) from error
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
        return [found for directory in self._folders() if (found := read_checkpoint(directory)) is not None]

    def _folders(self) -> list[Path]:
        """Newest first."""
        folders = [path for path in self._directory.glob("[0-9]*") if path.name.isdecimal()]
        return sorted(folders, key=lambda path: int(path.name), reverse=True)


def read_checkpoint(directory: Path) -> Checkpoint | None:
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


SAFE = (
    "train.num_steps", "checkpoint.interval", "checkpoint.max_to_keep", "run.stall_timeout_s", "weight_sync.backend",
    "rollout.num_workers", "rollout.autoscale.max_workers", "rollout.autoscale.target_wait",
    "rollout.num_cpus", "rollout.num_gpus", "rollout.resources",
    "rollout.start_timeout_s", "rollout.generate_timeout_s", "rollout.sync_timeout_s", "rollout.heartbeat_timeout_s",
    "reward.num_servers", "reward.num_cpus", "reward.num_gpus", "reward.resources", "reward.decoders",
    "reward.start_timeout_s", "reward.score_timeout_s", "reward.heartbeat_timeout_s",
    "reward.max_missing_rate", "reward.missing_window",
    "learner.num_cpus", "learner.num_gpus", "learner.resources", "learner.placement_strategy",
    "learner.start_timeout_s", "learner.step_timeout_s", "learner.max_consecutive_skips",
    "learner.gradient_checkpointing",
    "validation.num_recordings", "validation.recording_interval", "metrics.host", "metrics.port", "cluster.address",
)  # fmt: skip
"""Keys that may change: they decide no number that the run computes."""


SIZES = {"rollout.num_workers": "rollout", "reward.num_servers": "reward", "reward.decoders.num_workers": "decoder"}
"""Pools by the key that says how many members they have at the start."""


@dataclass(frozen=True, kw_only=True)
class ResumePlan:
    """A run that goes on."""

    directory: Path
    config: Config
    changes: Mapping[str, tuple[Any, Any]]
    """Old and new value of every setting that changes, by key."""
    checkpoint: Checkpoint | None
    """Where it goes on; None: no checkpoint was written, and it begins again."""


def plan_resume(run: Path, overrides: list[str], config_files: Sequence[Path] = ()) -> ResumePlan:
    """What `duet train --resume RUN` goes on with. config_files: a configuration that is to hold from now on, compared
    with the run's own.

    Raises InputError when there is no such run, when it has come to its end, or when a setting changes that may not.
    """
    directory = run_directory(run)
    own = load_config(directory / "config.yaml", [])
    wanted = load_config(config_files or directory / "config.yaml", overrides)
    for config in (own, wanted):
        make_absolute(config)
    if config_files:
        wanted.run.name, wanted.run.directory = own.run.name, own.run.directory
    changes = changed_settings(own, wanted)
    refused = {key: change for key, change in changes.items() if not _may_change(key, own)}
    if refused:
        listed = "; ".join(f"{key}: {old!r} → {new!r}" for key, (old, new) in refused.items())
        raise InputError(
            f"{directory.name} cannot go on with other settings than it began with: {listed}. Allowed to change: "
            f"{', '.join(key for key in SAFE if _may_change(key, own))}"
        )
    checkpoint = CheckpointManager(directory).newest()
    done = checkpoint.iteration if checkpoint is not None else 0
    if done >= wanted.train.num_steps and is_finished(directory):
        raise InputError(
            f"{directory.name} has finished its {done} iterations; to go on, ask for more: "
            f"train.num_steps={done + own.train.num_steps}"
        )
    if done > wanted.train.num_steps:
        raise InputError(f"train.num_steps: {wanted.train.num_steps}, but {directory.name} has done {done} already")
    for key in SIZES:
        size = attrgetter(key)(wanted)
        if any(override.partition("=")[0] == key for override in overrides):
            changes.setdefault(key, (size, size))  # asked for, whatever the pool was scaled to since
    return ResumePlan(directory=directory, config=wanted, changes=changes, checkpoint=checkpoint)


def changed_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Old and new value of every setting that is not the same, by key."""
    before, after = _flat(old), _flat(new)
    missing = object()
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, missing) != after.get(key, missing)
    }


def check_data_unchanged(state: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Raises InputError when the data are not those that a checkpoint was made with. Both: fingerprint by name."""
    for name, mark in state.items():
        if found.get(name) != mark:
            raise InputError(
                f"{name} is not what it was when the run began: its rows or their order have changed, so the run "
                "cannot go on without skipping or repeating some; restore the file, or start a new run"
            )


def sizes_before(directory: Path) -> dict[str, int]:
    """Sizes of the pools as they were last asked for, while the run worked or when it was resumed; those of the
    configuration have no entry."""
    sizes: dict[str, int] = {}
    for event in read_events(directory):
        if event["kind"] == "scale":
            sizes |= event["value"]
        elif event["kind"] == "resumed":
            sizes |= {SIZES[key]: new for key, (_, new) in event["changes"].items() if key in SIZES}
    return sizes


def seconds_before(directory: Path) -> float:
    """Wall seconds that earlier parts of a run worked, up to their last event; 0 for a new run."""
    total, begun, last = 0.0, None, None
    for event in read_events(directory):
        now = datetime.fromisoformat(event["time"])
        if event["kind"] in ("started", "resumed") and begun is not None and last is not None:
            total, begun = total + (last - begun).total_seconds(), None
        if event["kind"] == "started":
            begun = now
        last = now
    return total + (last - begun).total_seconds() if begun is not None and last is not None else total


def overrides_after(directory: Path, iteration: int) -> dict[int, list[float | str]]:
    """λ as it was set from outside (`duet set-lambda`) in later iterations, by iteration. They are done again, and take
    it again."""
    found: dict[int, list[float | str]] = {}
    for event in read_events(directory):
        if event["kind"] == "mix" and event["iteration"] > iteration:
            found.setdefault(event["iteration"], []).append(event["value"])
    return found


def _may_change(key: str, own: Config) -> bool:
    if key == "train.num_steps":
        # The length of the cosine is the length of the run.
        return own.learner.min_lr_ratio == 1.0
    return any(key == safe or key.startswith(f"{safe}.") for safe in SAFE)  # of a table, every name in it


def is_finished(directory: Path) -> bool:
    """Whether a run has come to its end, and has not been resumed since."""
    kinds = [event["kind"] for event in read_events(directory) if event["kind"] in ("finished", "failed", "resumed")]
    return bool(kinds) and kinds[-1] == "finished" and (directory / "summary.json").is_file()


def _flat(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                add(f"{prefix}.{name}" if prefix else str(name), item)
        else:
            flat[prefix] = value

    add("", config.model_dump())
    return flat
