"""Frozen parts of a model: named by patterns, each of which must match something (method §7, rule 7)."""

from collections.abc import Sequence

from torch import nn

from learner.patterns import frozen_names
from speech.errors import InputError


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
