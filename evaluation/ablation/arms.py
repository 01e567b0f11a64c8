"""The arms of the comparison, and the run of an arm with a seed. Pure.

Whether a run that exists was made with the settings of the comparison: mixed settings would compare nothing. Pure
but for reading config.yaml.
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
"""Stands in an override for half of the iterations."""


OWN_KEYS = ("run.seed", "run.name", "run.directory")
"""Keys that a comparison sets itself."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, everything else being equal."""

    name: str
    caption: str
    overrides: tuple[str, ...]
    """`key=value` beside the settings that all arms share."""
    in_table: bool = False
    """The paper gives IQ and EQ of it (the table of method §9)."""

    def settings(self, iterations: int) -> list[str]:
        """The overrides for runs of so many iterations."""
        return [override.replace(HALF, str(iterations // 2)) for override in self.overrides]


METHOD = {
    "algorithm.name": "grpo",
    "algorithm.score_routing": "wavalign",
    "mix_ratio.schedule": "adaptive",
    "mix_ratio.ema_decay": "0.9",
    "mix_ratio.per_group": "false",
}
"""What makes an arm; every arm states all of it, so that no configuration can make it another than it is called."""


def _arm(name: str, caption: str, *changes: str, in_table: bool = False) -> Arm:
    """An arm by its changes to the method, `key=value`."""
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
"""By name, in the order of the page."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run of the comparison, whether it exists or not."""

    arm: Arm
    seed: int
    directory: Path
    """Of the run."""
    arguments: tuple[str, ...]
    """Of `duet train`."""
    config: Config
    """What the arguments mean."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.seed}"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.directory.with_name(f"{self.name}.log")


def choose_arms(names: str) -> list[Arm]:
    """The arms of a comma-separated list in the order of `ARMS`; "" means all. Raises InputError."""
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(ARMS)
    for name in wanted:
        if name not in ARMS:
            raise InputError(f"--arms: there is no arm {name!r}; arms: {', '.join(ARMS)}")
    return [arm for arm in ARMS.values() if arm.name in wanted]


def plan_runs(
    arms: Sequence[Arm], seeds: int, directory: Path, config: Path, overrides: Sequence[str], iterations: int | None
) -> list[RunPlan]:
    """The runs of a comparison, all arms of a seed before the next seed. Raises InputError for settings of no run.

    seeds: how many, from 0. directory: holds the runs. config: the YAML file. overrides: the user's, for every arm.
    iterations: of every run; None leaves it to the file and the overrides.
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
    taken = dict.fromkeys(OWN_KEYS, "a comparison sets it itself")
    if iterations is not None:
        taken["train.num_steps"] = "--iterations says it already"
    for arm in arms:
        for setting in arm.overrides:
            taken.setdefault(setting.partition("=")[0], f"the arm {arm.name} sets it; choose --arms without it")
    for override in overrides:
        key = override.partition("=")[0]
        for own, reason in taken.items():
            if own == key or own.startswith(f"{key}.") or key.startswith(f"{own}."):
                raise InputError(f"{override}: {own} cannot be overridden in a comparison: {reason}")


ABSENT = "not there"


FREE = ("run.name", "run.directory")
"""Keys that may differ between what was run and what would be."""


SHOWN = 3
"""Differences named in an error."""


def check_arm_settings(plan: RunPlan, *, known_to_both: bool = False) -> list[str]:
    """Raises InputError when the run in the plan's directory was made with other settings than the plan's.

    known_to_both: compares only the keys that the version of Duet that made the run and this one both know. Returns
    the keys that this leaves out.
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
            differences.append(f"{key} is {there} there and {here} now")
    if differences:
        more = f" (and {len(differences) - SHOWN} more)" if len(differences) > SHOWN else ""
        raise InputError(
            f"{plan.directory} was run with other settings: {'; '.join(differences[:SHOWN])}{more}; give the settings "
            "of its run, or another --directory, or move it away"
        )
    return left_out


def _settings(tree: Any) -> dict[str, Any]:
    """Values by dotted key. Only sections are taken apart, so that a table of weights is one value."""
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
        return stored == now or stored == str(Path(now).absolute())  # a run keeps its paths absolute
    return stored == now
