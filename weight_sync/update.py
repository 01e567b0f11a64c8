"""Description of a weight update, which the sender hands to the receivers."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Exchange = Literal["shm", "filesystem", "object_store", "broadcast"]
"""Transport: shared memory of rank 0's node, a folder that all nodes see, Ray's object store, or a broadcast to all
workers at once (`weight_sync.broadcast`)."""


ADAPTER_START, ADAPTER_END = "base_model.model.", ".lora_{}.weight"
"""Prefix and suffix of a layer's name in PEFT's names of its adapter's matrices, A and B."""


@dataclass(frozen=True)
class TensorMeta:
    """Metadata of a tensor that will be sent."""

    name: str
    dtype: str
    """Torch's name, such as "bfloat16"."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BroadcastCall:
    """Invitation to a broadcast: the receivers, the address and the timeout (`weight_sync.broadcast`)."""

    number: int
    """Number of the call, increasing for each sender."""
    host: str
    """Address of the sender's store."""
    port: int
    receivers: tuple[str, ...]
    """Expected receivers: one per engine rank."""
    timeout_s: float
    """Maximum wait of one participant for another."""


@dataclass(frozen=True, kw_only=True)
class WeightUpdate:
    """A version of the weights, and where to get it: a file, pieces in Ray's object store, or a broadcast."""

    version: int
    size: int
    """Size of the weights in bytes."""
    whole: bool
    """True if every parameter is included. Parameters left out keep their initial values."""
    scale: float | None = None
    """Scale of LoRA adapters: the update holds A and B, and the receiver adds scale · B·A to the checkpoint's weights.
    None: the update holds weights."""
    path: Path | None = None
    """A safetensors file."""
    pieces: tuple[Any, ...] = ()
    """References to safetensors files in Ray's object store, each a list of uint8 arrays. Ray keeps a piece while a
    reference to it exists."""
    groups: tuple[tuple[TensorMeta, ...], ...] = ()
    """Tensors of a broadcast, in order. A receiver loads a group once it is complete."""
    key: str = ""
    """Identity of a broadcast: equal keys mean equal tensors and values."""
    call: BroadcastCall | None = None
    """Set for a broadcast."""


def load_unit(name: str) -> str:
    """Return the unit of a parameter: the module that an engine loads completely or not at all.

    Within a layer of a stack this is a block, such as `model.layers.3.self_attn`, whose projections the engine fuses.
    Elsewhere it is the parameter's module.
    """
    parts = name.split(".")
    index = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: min(index + 2, len(parts) - 1)])


def adapter_name(layer: str, part: str) -> str:
    """Return the name of a layer's matrix A or B in updates and files."""
    return f"{ADAPTER_START}{layer}{ADAPTER_END.format(part)}"


def adapted_layer(name: str) -> str | None:
    """Return the layer whose matrix A has this name; None for other names."""
    start, end = ADAPTER_START, ADAPTER_END.format("A")
    return name[len(start) : -len(end)] if name.startswith(start) and name.endswith(end) else None


def memory_directory() -> Path:
    """Return the shared-memory file system if it exists, else the temporary directory."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def write_all(descriptor: int, part: Any, offset: int) -> int:
    """Write a buffer at an offset of a file. Return the end offset. Raises OSError."""
    view = memoryview(part)
    done = 0
    while done < len(view):  # one call writes at most 2 GiB
        done += os.pwrite(descriptor, view[done:], offset + done)
    return offset + done
