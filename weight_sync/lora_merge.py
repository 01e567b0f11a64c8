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
from weight_sync.update import adapted_layer, adapter_name, load_unit


def merge_lora(checkpoint: Path, adapters: Mapping[str, Tensor], scale: float) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weight of everything in a unit with an adapted layer, unit by unit, on the adapters' device.

    An engine loads a unit completely or not at all. Adapted weights have the adapters' type, which is the learner's;
    they are computed in float32.

    Args:
        adapters: Matrices A [rank, inputs] and B [outputs, rank] by name.

    Raises InputError for a layer that the checkpoint lacks, or that has another shape.
    """
    layers = {f"{layer}.weight": layer for name in adapters if (layer := adapted_layer(name)) is not None}
    device = str(next(iter(adapters.values())).device)
    units = {load_unit(name) for name in layers}
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in sorted(checkpoint.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt", device=device))
            files |= {name: file for name in file.keys() if load_unit(name) in units}  # noqa: SIM118
        if missing := sorted(set(layers) - set(files)):
            raise InputError(
                f"learner.lora.target_modules: {checkpoint} has no {missing[0]}, for which an adapter was sent"
            )
        for name in sorted(files, key=lambda name: (load_unit(name), name)):
            weight = files[name].get_tensor(name)
            if name in layers:
                a, b = (adapters[adapter_name(layers[name], part)] for part in ("A", "B"))
                weight = add_adapter(weight, a, b, scale)
            yield name, weight


def add_adapter(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return weight + scale · B·A, computed in float32, in the adapter's type.

    The learner saves with this function too, so a checkpoint has the weights that workers computed with.
    """
    if weight.shape != (b.shape[0], a.shape[1]):
        raise InputError(
            f"model.path: an adapter for {b.shape[0]} outputs and {a.shape[1]} inputs was sent of a layer with a "
            f"weight of {list(weight.shape)}"
        )
    start = weight.to(a.dtype).float()  # as the learner loaded it
    return (start + scale * (b.float() @ a.float())).to(a.dtype)
