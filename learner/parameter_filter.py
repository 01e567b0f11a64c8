"""Applies a configuration's name patterns to a model: parameters to freeze, layers to adapt (method §7, rule 7).

Each pattern must match something. Importable without torch.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from common.errors import InputError
from learner.config import LoraConfig

if TYPE_CHECKING:
    from torch import nn


def frozen_names(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Return the names that match shell-style patterns such as "model.layers.0.*".

    Raises InputError for a pattern that matches nothing, or if no parameter would be left to train.
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
    """Return inputs and outputs of each layer that gets an adapter, by name.

    Args:
        layers: Weight shape [outputs, inputs] of each linear layer, by name.
        frozen: Layers that `model.freeze` excludes.

    Raises InputError for a pattern that matches no layer, for a rank above a layer's size, or if no layer is left.
    """
    names: set[str] = set()
    for pattern in settings.target_modules:
        matched = {name for name in layers if fnmatchcase(name, pattern)}
        if not matched:
            endings = ", ".join([*sorted({name.rpartition(".")[2] for name in layers})[:8], "…"])
            raise InputError(
                f"learner.lora.target_modules: {pattern!r} matches no linear layer with an untied weight; the names "
                "of those "
                f"layers end with {endings}"
            )
        names |= matched
    found = {name: (shape[1], shape[0]) for name, shape in layers.items() if name in names and name not in frozen}
    if not found:
        raise InputError(
            f"learner.lora.target_modules: {', '.join(settings.target_modules)} match only layers that model.freeze "
            "freezes"
        )
    smallest = min(found, key=lambda name: min(found[name]))
    if settings.r > min(found[smallest]):
        inputs, outputs = found[smallest]
        raise InputError(
            f"learner.lora.r: {settings.r} exceeds {smallest}, which has {inputs} inputs and {outputs} outputs; "
            f"use at most {min(found[smallest])}"
        )
    return found


def _examples(names: list[str]) -> list[str]:
    """Pick a few names for a message."""
    examples = [names[len(names) * part // 4] for part in range(4)] if len(names) > 4 else names
    return [*dict.fromkeys(examples), "…"]


def freeze(model: "nn.Module", patterns: Sequence[str]) -> int:
    """Freeze the named parameters. Return how many there are. Raises InputError as `frozen_names` does."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = frozen_names(parameters, patterns)
    for name in found:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        # Tied parameters share one tensor: freezing it under one name freezes all its names.
        raise InputError(f"model.freeze: {', '.join(patterns)} freeze every parameter; nothing is left to train")
    return len(found)
