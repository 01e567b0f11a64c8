"""Model families, each a file of this folder that names what there is in it in `FAMILIES`.

A family of your own need not be here: `model.family: "mine.family:MINE"` takes it from a module of yours.
"""

import importlib
import pkgutil
from functools import cache
from typing import Any

from common.errors import InputError
from speech.families.base import Family, Template
from speech.families.playground import PLAYGROUND

__all__ = ["PLAYGROUND", "Family", "Template", "families", "family", "named"]


@cache
def families() -> dict[str, Family]:
    """All that the files of this folder have, by name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {one.name: one for module in modules for one in getattr(module, "FAMILIES", ())}


def family(name: str) -> Family:
    """The family of that name, or the one that `module:NAME` leads to. Raises InputError naming the known ones."""
    if name in families():
        return families()[name]
    if ":" not in name:
        raise InputError(
            f"model.family: unknown family {name!r}; known: {', '.join(sorted(families()))}, or module:NAME of your own"
        )
    try:
        found = import_object(name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"model.family: {name!r} leads to nothing: {error}") from error
    if not isinstance(found, Family):
        raise InputError(f"model.family: {name!r} is a {type(found).__name__}, not a Family")
    return found


def import_object(path: str) -> Any:
    """What module:NAME leads to. Raises ImportError or AttributeError."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
