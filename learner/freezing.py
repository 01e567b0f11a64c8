"""Frozen parts of a model: named by patterns, each of which must match something (method §7, rule 7)."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from speech.errors import InputError


def frozen_names(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The parameters among `names` that the patterns name, shell-style: "model.layers.0.*".

    Raises InputError for a pattern that matches nothing, and when nothing would be left to train.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise InputError(
                f"model.frozen: {pattern!r} matches no parameter; the model has {', '.join(_examples(names))}"
            )
        found |= matched
    if names and len(found) == len(names):
        raise InputError(f"model.frozen: {', '.join(patterns)} freeze every parameter; nothing is left to train")
    return found


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Takes the named parameters out of training. Returns how many there are; raises as `frozen_names` does."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = frozen_names(parameters, patterns)
    for name in found:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        # Tied parameters share one tensor: freezing it under one name freezes it under all.
        raise InputError(f"model.frozen: {', '.join(patterns)} freeze every parameter; nothing is left to train")
    return len(found)


def _examples(names: list[str]) -> list[str]:
    """A few names, for a message."""
    few = [names[len(names) * part // 4] for part in range(4)] if len(names) > 4 else names
    return [*dict.fromkeys(few), "…"]
