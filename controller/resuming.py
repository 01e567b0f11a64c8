"""Going on with a run: which of its settings may change, and what is refused.

A run that goes on is to be the run that it would have been. What decides its numbers is fixed; what decides only how
long it takes, or what is kept of it, may change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from controller.checkpoints import Checkpoint, Checkpoints
from controller.config import Config
from controller.paths import make_absolute
from controller.reading import read
from controller.records import read_events, run_directory
from speech.errors import InputError

SAFE = (
    "run.iterations", "run.checkpoint_every", "run.keep_checkpoints", "run.stall_seconds", "run.exchange",
    "rollout.workers", "rollout.most_workers", "rollout.wait_share",
    "rollout.cpus", "rollout.gpus", "rollout.resources",
    "rollout.start_seconds", "rollout.sample_seconds", "rollout.sync_seconds", "rollout.beat_seconds",
    "reward.servers", "reward.cpus", "reward.gpus", "reward.resources", "reward.decoders",
    "reward.start_seconds", "reward.score_seconds", "reward.beat_seconds",
    "reward.missing_limit", "reward.missing_window",
    "learner.cpus", "learner.gpus", "learner.resources", "learner.strategy",
    "learner.start_seconds", "learner.step_seconds", "learner.skips_in_a_row", "learner.gradient_checkpointing",
    "evaluation.recordings", "evaluation.listen_every", "metrics.host", "metrics.port", "cluster.address",
)  # fmt: skip
"""Keys that may change: they decide no number that the run computes."""
SIZES = {"rollout.workers": "rollout", "reward.servers": "reward", "reward.decoders.members": "decoder"}
"""Pools by the key that says how many members they have at the start."""


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A run that goes on."""

    directory: Path
    config: Config
    changes: Mapping[str, tuple[Any, Any]]
    """Old and new value of every setting that changes, by key."""
    checkpoint: Checkpoint | None
    """Where it goes on; None: no checkpoint was written, and it begins again."""


def resume(run: Path, overrides: list[str], config_file: Path | None = None) -> Resumption:
    """What `duet train --resume RUN` goes on with. config_file: a configuration that is to hold from now on, compared
    with the run's own.

    Raises InputError when there is no such run, when it has come to its end, or when a setting changes that may not.
    """
    directory = run_directory(run)
    own = read(directory / "config.yaml", [])
    wanted = read(config_file or directory / "config.yaml", overrides)
    for config in (own, wanted):
        make_absolute(config)
    if config_file is not None:
        wanted.run.name, wanted.run.directory = own.run.name, own.run.directory
    changes = differences(own, wanted)
    refused = {key: change for key, change in changes.items() if not _may_change(key, own)}
    if refused:
        listed = "; ".join(f"{key}: {old!r} → {new!r}" for key, (old, new) in refused.items())
        raise InputError(
            f"{directory.name} cannot go on with other settings than it began with: {listed}. Allowed to change: "
            f"{', '.join(key for key in SAFE if _may_change(key, own))}"
        )
    checkpoint = Checkpoints(directory).newest()
    done = checkpoint.iteration if checkpoint is not None else 0
    if done >= wanted.run.iterations and ended(directory):
        raise InputError(
            f"{directory.name} has finished its {done} iterations; to go on, ask for more: "
            f"run.iterations={done + own.run.iterations}"
        )
    if done > wanted.run.iterations:
        raise InputError(f"run.iterations: {wanted.run.iterations}, but {directory.name} has done {done} already")
    for key in SIZES:
        size = attrgetter(key)(wanted)
        if any(override.partition("=")[0] == key for override in overrides):
            changes.setdefault(key, (size, size))  # asked for, whatever the pool was scaled to since
    return Resumption(directory=directory, config=wanted, changes=changes, checkpoint=checkpoint)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Old and new value of every setting that is not the same, by key."""
    before, after = _flat(old), _flat(new)
    missing = object()
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, missing) != after.get(key, missing)
    }


def check_data(state: Mapping[str, Any], found: Mapping[str, str]) -> None:
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
    """λ as it was set from outside (`duet mix`) in later iterations, by iteration. They are done again, and take it
    again."""
    found: dict[int, list[float | str]] = {}
    for event in read_events(directory):
        if event["kind"] == "mix" and event["iteration"] > iteration:
            found.setdefault(event["iteration"], []).append(event["value"])
    return found


def _may_change(key: str, own: Config) -> bool:
    if key == "run.iterations":
        # The length of the cosine is the length of the run.
        return own.learner.final_rate == 1.0
    return any(key == safe or key.startswith(f"{safe}.") for safe in SAFE)  # of a table, every name in it


def ended(directory: Path) -> bool:
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

    add("", OmegaConf.to_container(OmegaConf.structured(config)))
    return flat
