"""Gradient checkpointing: of each layer only the input is kept, and the rest is computed again in the backward pass."""

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from speech.errors import InputError


def use_checkpointing(model: nn.Module) -> int:
    """Switches it on in a transformers model; returns in how many layers. Raises InputError where there is none.

    transformers recomputes only what is in training mode, which would switch dropout on as well. So the layers
    themselves are told that they train, and nothing within them is; dropout that a layer does itself is set to 0.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"learner.gradient_checkpointing: {type(model).__name__} has no layers that can be recomputed")
    switch: Any = model.gradient_checkpointing_enable
    switch({"use_reentrant": False})
    for layer in layers:
        layer.training = True
        for name, value in list(vars(layer).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(layer, name, 0.0)
    return len(layers)
