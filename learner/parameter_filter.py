"""Frozen parts of a model: named by patterns, each of which must match something (method §7, rule 7).

What a configuration's patterns name in a model: parameters that are frozen, layers that get adapters.

Importable without torch.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from common.errors import InputError
from learner.config import LoraConfig

if TYPE_CHECKING:
    from torch import nn


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
                f"model.freeze: {pattern!r} matches no parameter; the model has {', '.join(_examples(names))}"
            )
        found |= matched
    if names and len(found) == len(names):
        raise InputError(f"model.freeze: {', '.join(patterns)} freeze every parameter; nothing is left to train")
    return found


def adapted_layers(
    layers: Mapping[str, Sequence[int]], settings: LoraConfig, frozen: Collection[str] = ()
) -> dict[str, tuple[int, int]]:
    """The layers that get an adapter, with their inputs and outputs.

    layers: shape [outputs, inputs] of the weight of each linear layer, by the layer's name. frozen: those of them that
    `model.freeze` keeps as they are. Raises InputError for a pattern that matches none, for a rank that is larger than
    a matrix, and when no layer is left.
    """
    names: set[str] = set()
    for pattern in settings.targets:
        matched = {name for name in layers if fnmatchcase(name, pattern)}
        if not matched:
            few = ", ".join([*sorted({name.rpartition(".")[2] for name in layers})[:8], "…"])
            raise InputError(
                f"learner.lora.target_modules: {pattern!r} matches no linear layer that has a weight to itself; the "
                "names of "
                f"those end with {few}"
            )
        names |= matched
    found = {name: (shape[1], shape[0]) for name, shape in layers.items() if name in names and name not in frozen}
    if not found:
        raise InputError(
            f"learner.lora.target_modules: {', '.join(settings.targets)} match only what model.freeze names"
        )
    least = min(found, key=lambda name: min(found[name]))
    if settings.rank > min(found[least]):
        inputs, outputs = found[least]
        raise InputError(
            f"learner.lora.r: {settings.rank}, but {least} has {inputs} inputs and {outputs} outputs; at most "
            f"{min(found[least])}"
        )
    return found


def _examples(names: list[str]) -> list[str]:
    """A few names, for a message."""
    few = [names[len(names) * part // 4] for part in range(4)] if len(names) > 4 else names
    return [*dict.fromkeys(few), "…"]


def freeze(model: "nn.Module", patterns: Sequence[str]) -> int:
    """Takes the named parameters out of training. Returns how many there are; raises as `frozen_names` does."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = frozen_names(parameters, patterns)
    for name in found:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        # Tied parameters share one tensor: freezing it under one name freezes it under all.
        raise InputError(f"model.freeze: {', '.join(patterns)} freeze every parameter; nothing is left to train")
    return len(found)
