"""A version of the weights on its way from the learner to the rollout workers: what a sender hands to receivers."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Exchange = Literal["shm", "filesystem", "object_store", "broadcast"]
"""Through the memory of rank 0's node, a folder that all nodes see, or Ray's object store; or to all workers at once,
which is `weight_sync.broadcast`'s."""


ADAPTER_START, ADAPTER_END = "base_model.model.", ".lora_{}.weight"
"""Around the name of a layer in PEFT's names of the two matrices of its adapter, A and B."""


@dataclass(frozen=True)
class TensorMeta:
    """Of a tensor that will come."""

    name: str
    dtype: str
    """As torch has it: "bfloat16"."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BroadcastCall:
    """Who is to come, where and how soon, to be given weights all at once (`weight_sync.broadcast`)."""

    number: int
    """Tells calls of one sender apart; each has a larger one than those before."""
    host: str
    """Where the sender serves its store."""
    port: int
    seats: tuple[str, ...]
    """Those that are expected."""
    seconds: float
    """Longest wait of one for another."""


@dataclass(frozen=True, kw_only=True)
class WeightUpdate:
    """The weights themselves stay where the sender put them: in a file, in pieces in Ray's object store, or in its own
    memory, from where they go to all that come when it calls."""

    version: int
    size: int
    """Bytes of weights."""
    whole: bool
    """Whether every parameter is in it; else those that are not are as in the checkpoint that everybody started
    from."""
    scale: float | None = None
    """What there is are low-rank adapters, of which scale · B·A is to be added to the checkpoint's weights; None: they
    are weights."""
    path: Path | None = None
    """One safetensors file."""
    pieces: tuple[Any, ...] = ()
    """References to the parts of a safetensors file each, uint8 arrays, in order. Ray keeps a piece for as long as
    somebody holds a reference to it."""
    groups: tuple[tuple[TensorMeta, ...], ...] = ()
    """What is broadcast, tensors in the order in which they come; a group is whole at the receiver before it is loaded.
    """
    key: str = ""
    """Of what is broadcast: with the same one come the same tensors, of the same values."""
    call: BroadcastCall | None = None
    """Set where it is broadcast."""


def unit(name: str) -> str:
    """What an engine loads whole or not at all, of which the parameter is a part: a block within a layer of a stack
    (`model.layers.3.self_attn`, whose projections are one matrix in the engine), elsewhere the module itself."""
    parts = name.split(".")
    index = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: min(index + 2, len(parts) - 1)])


def adapter_name(layer: str, part: str) -> str:
    """Of a layer's matrix A or B, as it travels and is kept."""
    return f"{ADAPTER_START}{layer}{ADAPTER_END.format(part)}"


def adapted_layer(name: str) -> str | None:
    """The layer whose matrix A has this name; None for all other names."""
    start, end = ADAPTER_START, ADAPTER_END.format("A")
    return name[len(start) : -len(end)] if name.startswith(start) and name.endswith(end) else None


def memory_directory() -> Path:
    """The shared-memory file system where there is one, else the temporary directory."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def write_all(descriptor: int, part: Any, offset: int) -> int:
    """Writes a buffer of bytes at this place of a file, and returns where it ends. Raises OSError."""
    view = memoryview(part)
    done = 0
    while done < len(view):  # one call takes 2 GiB at most
        done += os.pwrite(descriptor, view[done:], offset + done)
    return offset + done
