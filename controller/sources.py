"""Data sets that a run is made of: one, or several that are mixed by weight. Importable without torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.bounds import MANY
from speech.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file or folder of data."""

    path: str
    weight: float = 1.0
    """Its share of each iteration, relative to the others'."""


def sources(value: Any) -> list[Source]:
    """What `data.prompts` or `data.demonstrations` names, once it has been checked."""
    return [Source(path=value)] if isinstance(value, str) else [Source(**one) for one in value]


def paths(value: Any) -> list[Path]:
    """The same without the weights."""
    return [Path(source.path) for source in sources(value)]


def named(value: Any) -> str:
    """What to call them in a sentence."""
    return ", ".join(source.path for source in sources(value))


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """The same with other paths."""
    if isinstance(value, str):
        return change(value)
    return [{"path": change(source.path), "weight": source.weight} for source in sources(value)]


def check_sources(key: str, value: Any, check_path: Callable[[str, str], None]) -> None:
    """Raises InputError unless the value is a path, or a list of paths with weights."""
    if isinstance(value, str):
        check_path(key, value)
        return
    if not isinstance(value, list) or not value:
        raise InputError(f"{key}: {value!r} is not possible; a path, or a list such as [{{path: a, weight: 2}}, …]")
    for place, one in enumerate(value):
        at = f"{key}[{place}]"
        if not isinstance(one, dict) or not {"path"} <= set(one) <= {"path", "weight"}:
            raise InputError(f"{at}: {one!r} is not possible; it has a path, a weight, and nothing else")
        if not isinstance(one["path"], str):
            raise InputError(f"{at}.path: {one['path']!r} cannot be the name of a file or folder")
        check_path(f"{at}.path", one["path"])
        weight = one.get("weight", 1.0)
        good = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        if not good or not 1 / MANY <= weight <= MANY:
            raise InputError(f"{at}.weight: {weight!r} is not possible; a number from {1 / MANY:g} to {MANY:g}")
    if len({Path(one["path"]) for one in value}) < len(value):
        raise InputError(f"{key}: two sources have the same path; give it once, with a weight")
