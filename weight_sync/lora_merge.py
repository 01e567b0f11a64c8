"""Merges LoRA adapters into the checkpoint's weights: W + scale · B·A.

An engine always receives merged weights: sampling costs what it costs without adapters. The checkpoint stays on disk,
or in the page cache; no second copy is held in memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from common.errors import InputError
from weight_sync.update import adapted_layer, adapter_name, unit


def merge_lora(checkpoint: Path, adapters: Mapping[str, Tensor], scale: float) -> Iterator[tuple[str, Tensor]]:
    """Name and weight of all that shares a unit with an adapted layer, a unit after the other: an engine loads it whole
    or not at all. What is adapted comes in the type of the adapters, which is the learner's, reckoned in float32; all
    of it on their device.

    adapters: matrices A [rank, inputs] and B [outputs, rank] by name. Raises InputError for a layer that the checkpoint
    has not, or has otherwise.
    """
    layers = {f"{layer}.weight": layer for name in adapters if (layer := adapted_layer(name)) is not None}
    device = str(next(iter(adapters.values())).device)
    units = {unit(name) for name in layers}
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for path in sorted(checkpoint.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt", device=device))
            places |= {name: file for name in file.keys() if unit(name) in units}  # noqa: SIM118
        if missing := sorted(set(layers) - set(places)):
            raise InputError(
                f"learner.lora.target_modules: {checkpoint} has no {missing[0]}, of which an adapter was sent"
            )
        for name in sorted(places, key=lambda name: (unit(name), name)):
            weight = places[name].get_tensor(name)
            if name in layers:
                a, b = (adapters[adapter_name(layers[name], part)] for part in ("A", "B"))
                weight = add_adapter(weight, a, b, scale)
            yield name, weight


def add_adapter(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The same as the learner's own `AdaptedLinear.merged`, so that what it saves is what workers computed with."""
    if weight.shape != (b.shape[0], a.shape[1]):
        raise InputError(
            f"model.path: an adapter for {b.shape[0]} outputs and {a.shape[1]} inputs was sent of a layer with a "
            f"weight of {list(weight.shape)}"
        )
    start = weight.to(a.dtype).float()  # what the learner loaded of it
    return (start + scale * (b.float() @ a.float())).to(a.dtype)
