"""Arms of the comparison, run plans, and checks of the settings of existing runs.

Runs with mixed settings are not comparable. The only I/O is reading configuration files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from common.errors import InputError
from configs.load import load_config
from configs.schema import Config, Section, section_type

HALF = "HALF"
"""Placeholder in an override for half of the iterations."""


OWN_KEYS = ("run.seed", "run.name", "run.directory")
"""Keys set by the comparison."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Training variant. All other settings are shared between arms."""

    name: str
    caption: str
    overrides: tuple[str, ...]
    """`key=value` overrides, in addition to the shared settings."""
    in_table: bool = False
    """True if the paper reports IQ and EQ of this arm (table in method §9)."""

    def settings(self, iterations: int) -> list[str]:
        """Return the overrides for runs of `iterations` iterations."""
        return [override.replace(HALF, str(iterations // 2)) for override in self.overrides]


METHOD = {
    "algorithm.name": "grpo",
    "algorithm.score_routing": "wavalign",
    "mix_ratio.schedule": "adaptive",
    "mix_ratio.ema_decay": "0.9",
    "mix_ratio.per_group": "false",
}
"""Keys that define an arm. Every arm sets all of them, so that a configuration file cannot change its meaning."""


def _arm(name: str, caption: str, *changes: str, in_table: bool = False) -> Arm:
    """Return an arm from its changes to `METHOD`, as `key=value`."""
    stated = METHOD | dict(change.split("=", 1) for change in changes)
    overrides = tuple(f"{key}={value}" for key, value in stated.items())
    return Arm(name=name, caption=caption, overrides=overrides, in_table=in_table)


_FIXED = ("mix_ratio.schedule=fixed", "mix_ratio.value=0.5")


_BARE = ("mix_ratio.schedule=fixed", "mix_ratio.value=1")


_BOTH = "{score: total, channel: text, weight: 1.0}, {score: total, channel: speech, weight: 1.0}"


ARMS = {
    arm.name: arm
    for arm in (
        _arm(
            "anchor_only",
            "anchor alone",
            "algorithm.score_routing=anchor_only",
            "mix_ratio.schedule=fixed",
            "mix_ratio.value=0",
        ),
        _arm("fixed_full", "λ 0.5, all tokens", "algorithm.score_routing=full", *_FIXED, in_table=True),
        _arm("fixed_text", "λ 0.5, text", *_FIXED, in_table=True),
        _arm("fixed_text_03", "λ 0.3, text", "mix_ratio.schedule=fixed", "mix_ratio.value=0.3", in_table=True),
        _arm("adaptive_full", "adaptive λ, all tokens", "algorithm.score_routing=full", in_table=True),
        _arm("adaptive_raw", "adaptive λ without moving average, text", "mix_ratio.ema_decay=0", in_table=True),
        _arm("adaptive", "adaptive λ with moving average, text (the method)", in_table=True),
        _arm(
            "two_stage",
            "anchor alone for the first half, preference on text alone after it",
            *("mix_ratio.schedule=two_stage", f"mix_ratio.warmup_steps={HALF}", "mix_ratio.value=1"),
        ),
        _arm(
            "dpo_full",
            "online DPO on all tokens, no anchor",
            *("algorithm.name=dpo", "algorithm.dpo.channel=all", *_BARE),
        ),
        _arm(
            "dpo_text",
            "online DPO on text, no anchor",
            *("algorithm.name=dpo", "algorithm.dpo.channel=text", *_BARE),
        ),
        _arm("alpo", "adaptive λ, each score to its own tokens (ALPO)", "algorithm.score_routing=alpo"),
        _arm(
            "adaptive_both",
            "adaptive λ, text and speech each with its own normaliser",
            f"algorithm.score_routing=[{_BOTH}]",
        ),
    )
}
"""Arms by name, in page order."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Planned run of one arm with one seed. It may or may not exist."""

    arm: Arm
    seed: int
    directory: Path
    """Run directory."""
    arguments: tuple[str, ...]
    """Arguments of `duet train`."""
    config: Config
    """Configuration that the arguments give."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.seed}"

    @property
    def log(self) -> Path:
        """File with the output of the run."""
        return self.directory.with_name(f"{self.name}.log")


def choose_arms(names: str) -> list[Arm]:
    """Return the arms of a comma-separated list, in the order of `ARMS`. "": all. Raises InputError if unknown."""
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(ARMS)
    for name in wanted:
        if name not in ARMS:
            raise InputError(f"--arms: unknown arm {name!r}; arms: {', '.join(ARMS)}")
    return [arm for arm in ARMS.values() if arm.name in wanted]


def plan_runs(
    arms: Sequence[Arm], seeds: int, directory: Path, config: Path, overrides: Sequence[str], iterations: int | None
) -> list[RunPlan]:
    """Plan the runs of a comparison, seed by seed. Raises InputError for invalid settings.

    Args:
        arms: Arms to run.
        seeds: Number of seeds, counted from 0.
        directory: Parent of the run directories.
        config: YAML configuration file.
        overrides: User overrides for every arm.
        iterations: Iterations per run. None: as in the file and overrides.
    """
    _check(arms, seeds, overrides, iterations)
    shared = [*([f"train.num_steps={iterations}"] if iterations is not None else []), *overrides]
    length = load_config(config, shared).train.num_steps
    meant = {arm.name: load_config(config, [*arm.settings(length), *shared]) for arm in arms}
    plans = []
    for seed in range(seeds):
        for arm in arms:
            name = f"{arm.name}-{seed}"
            own = [f"run.seed={seed}", f"run.name={name}", f"run.directory={directory}"]
            run = meant[arm.name].run.model_copy(update={"seed": seed, "name": name, "directory": str(directory)})
            plans.append(
                RunPlan(
                    arm=arm,
                    seed=seed,
                    directory=directory / name,
                    arguments=("--config", str(config), *own, *arm.settings(length), *shared),
                    config=meant[arm.name].model_copy(update={"run": run}),
                )
            )
    return plans


def _check(arms: Sequence[Arm], seeds: int, overrides: Sequence[str], iterations: int | None) -> None:
    if seeds < 1:
        raise InputError(f"--seeds: {seeds} is too small; at least 1")
    taken = dict.fromkeys(OWN_KEYS, "the comparison sets it")
    if iterations is not None:
        taken["train.num_steps"] = "--iterations sets it"
    for arm in arms:
        for setting in arm.overrides:
            taken.setdefault(setting.partition("=")[0], f"the arm {arm.name} sets it; exclude the arm with --arms")
    for override in overrides:
        key = override.partition("=")[0]
        for own, reason in taken.items():
            if own == key or own.startswith(f"{key}.") or key.startswith(f"{own}."):
                raise InputError(f"{override}: a comparison does not allow overriding {own}: {reason}")


ABSENT = "not set"


FREE = ("run.name", "run.directory")
"""Keys that may differ between an existing run and its plan."""


SHOWN = 3
"""Maximum differences listed in an error."""


def check_arm_settings(plan: RunPlan, *, known_to_both: bool = False) -> list[str]:
    """Check that the existing run has the settings of its plan. Raises InputError if they differ.

    known_to_both: compare only keys known to both this version of Duet and the version of the run. Returns the
    skipped keys.
    """
    path = plan.directory / "config.yaml"
    stored = _settings(OmegaConf.to_container(OmegaConf.load(path)))
    now = _settings(plan.config.model_dump(mode="json"))
    left_out, differences = [], []
    for key in dict.fromkeys([*now, *stored]):
        there, here = stored.get(key, ABSENT), now.get(key, ABSENT)
        if key in FREE or _same(there, here):
            continue
        if known_to_both and (key not in stored or key not in now):
            left_out.append(key)
        else:
            differences.append(f"{key} was {there} and is now {here}")
    if differences:
        more = f" (and {len(differences) - SHOWN} more)" if len(differences) > SHOWN else ""
        raise InputError(
            f"{plan.directory} was run with other settings: {'; '.join(differences[:SHOWN])}{more}; use the settings "
            "of that run, choose another --directory, or move the run away"
        )
    return left_out


def _settings(tree: Any) -> dict[str, Any]:
    """Return values by dotted key. Only sections are flattened: a mapping of weights is one value."""
    return dict(_leaves(tree, Config))


def _leaves(tree: dict, kind: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        field = kind.model_fields.get(name)
        if field is not None and (section := section_type(field.annotation)) and isinstance(value, dict):
            yield from _leaves(value, section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _same(stored: Any, now: Any) -> bool:
    if isinstance(stored, dict) and isinstance(now, dict):
        return stored.keys() == now.keys() and all(_same(stored[key], now[key]) for key in now)
    if isinstance(stored, list) and isinstance(now, list | tuple):
        return len(stored) == len(now) and all(map(_same, stored, now))
    if isinstance(stored, str) and isinstance(now, str):
        return stored == now or stored == str(Path(now).absolute())  # a run stores absolute paths
    return stored == now
