"""Whether a run that exists was made with the settings of the comparison: mixed settings would compare nothing. Pure
but for reading config.yaml."""

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from controller.compare.arms import Plan
from controller.config import Config
from speech.errors import InputError

ABSENT = "not there"
FREE = ("run.name", "run.directory")
"""Keys that may differ between what was run and what would be."""
SHOWN = 3
"""Differences named in an error."""


def check_settings(plan: Plan, *, known_to_both: bool = False) -> list[str]:
    """Raises InputError when the run in the plan's directory was made with other settings than the plan's.

    known_to_both: compares only the keys that the version of Duet that made the run and this one both know. Returns
    the keys that this leaves out.
    """
    path = plan.directory / "config.yaml"
    stored = _settings(OmegaConf.to_container(OmegaConf.load(path)))
    now = _settings(asdict(plan.config))
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


def _leaves(tree: dict, kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    sections = {f.name: f.default_factory for f in fields(kind) if is_dataclass(f.default_factory)}
    for name, value in tree.items():
        if name in sections and isinstance(value, dict):
            yield from _leaves(value, sections[name], f"{prefix}{name}.")
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
