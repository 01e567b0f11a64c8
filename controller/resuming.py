"""Resuming a run: which settings may change, and what its records contribute.

A resumed run gives the same numbers as an uninterrupted one. Settings that decide a number are fixed. Settings that
decide only duration or what is kept may change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.errors import InputError
from configs.load import load_config, make_absolute
from configs.schema import Config
from controller.checkpointing import Checkpoint, CheckpointManager
from observability.run_directory import read_events, run_directory

CHANGEABLE = (
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
"""Keys that may change: they decide no number of the run."""


SIZE_KEYS = {"rollout.num_workers": "rollout", "reward.num_servers": "reward", "reward.decoders.num_workers": "decoder"}
"""Pools by the key of their initial size."""


@dataclass(frozen=True, kw_only=True)
class ResumePlan:
    """A run to resume."""

    directory: Path
    config: Config
    changes: Mapping[str, tuple[Any, Any]]
    """Old and new value of every changed setting, by key."""
    checkpoint: Checkpoint | None
    """Checkpoint to resume from. None: there is none, and the run starts from the beginning."""


def plan_resume(run: Path, overrides: list[str], config_files: Sequence[Path] = ()) -> ResumePlan:
    """Plan `duet train --resume RUN`. config_files: replace the run's own configuration.

    Raises InputError if the run does not exist, has finished, or a fixed setting changes.
    """
    directory = run_directory(run)
    own = load_config(directory / "config.yaml", [])
    new = load_config(config_files or directory / "config.yaml", overrides)
    for config in (own, new):
        make_absolute(config)
    if config_files:
        new.run.name, new.run.directory = own.run.name, own.run.directory
    changes = changed_settings(own, new)
    fixed = {key: change for key, change in changes.items() if not _may_change(key, own)}
    if fixed:
        listed = "; ".join(f"{key}: {old!r} → {new!r}" for key, (old, new) in fixed.items())
        raise InputError(
            f"{directory.name} cannot be resumed with changes of {listed}. Allowed to change: "
            f"{', '.join(key for key in CHANGEABLE if _may_change(key, own))}"
        )
    checkpoint = CheckpointManager(directory).newest()
    done = checkpoint.iteration if checkpoint is not None else 0
    if done >= new.train.num_steps and is_finished(directory):
        raise InputError(
            f"{directory.name} has finished its {done} iterations. To continue, set more: "
            f"train.num_steps={done + own.train.num_steps}"
        )
    if done > new.train.num_steps:
        raise InputError(
            f"train.num_steps: {new.train.num_steps} is below the {done} iterations that {directory.name} has done. "
            f"Use at least {done}"
        )
    for key in SIZE_KEYS:
        size = attrgetter(key)(new)
        if any(override.partition("=")[0] == key for override in overrides):
            changes.setdefault(key, (size, size))  # given explicitly, so it overrides later resizes
    return ResumePlan(directory=directory, config=new, changes=changes, checkpoint=checkpoint)


def changed_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return old and new value of every setting that differs, by key."""
    before, after = _flat(old), _flat(new)
    missing = object()
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, missing) != after.get(key, missing)
    }


def check_data_unchanged(state: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Raise InputError if the data differ from those of a checkpoint. state, found: fingerprints by name."""
    for name, fingerprint in state.items():
        if found.get(name) != fingerprint:
            raise InputError(
                f"{name} has changed since the run started: other rows, or another order. The run would skip or repeat "
                "rows. Restore the file, or start a new run"
            )


def sizes_before(directory: Path) -> dict[str, int]:
    """Return the last requested sizes of pools, from requests and resumes. Pools with their configured size have no
    entry."""
    sizes: dict[str, int] = {}
    for event in read_events(directory):
        if event["kind"] == "scale":
            sizes |= event["value"]
        elif event["kind"] == "resumed":
            sizes |= {SIZE_KEYS[key]: new for key, (_, new) in event["changes"].items() if key in SIZE_KEYS}
    return sizes


def seconds_before(directory: Path) -> float:
    """Return the wall seconds of earlier parts of a run, up to their last events; 0 for a new run."""
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
    """Return overrides of λ (`duet set-lambda`) after an iteration, by iteration. These iterations are repeated
    with them."""
    found: dict[int, list[float | str]] = {}
    for event in read_events(directory):
        if event["kind"] == "mix" and event["iteration"] > iteration:
            found.setdefault(event["iteration"], []).append(event["value"])
    return found


def _may_change(key: str, own: Config) -> bool:
    if key == "train.num_steps":
        # The cosine schedule depends on the length of the run.
        return own.learner.min_lr_ratio == 1.0
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE)  # all names of a table


def is_finished(directory: Path) -> bool:
    """Return True if a run has finished and was not resumed since."""
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
