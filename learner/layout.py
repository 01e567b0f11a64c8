"""How tensors lie in a safetensors file, known before any of them is at hand. Pure.

    8 bytes: length of the header, little-endian · the header, JSON · the bytes of all tensors, without gaps

The format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""What the format calls a type of number."""


@dataclass(frozen=True)
class Entry:
    """A tensor that will come."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> "Entry":
        """Of one that may be partitioned by ZeRO-3: its shape is that of the whole."""
        return cls(name, tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A file that will be."""

    header: bytes
    """All that comes before the tensors, its length included."""
    offsets: dict[str, int]
    """Where each tensor begins, bytes from the start of the file; in that order."""
    size: int
    """Bytes of the whole file."""


def layout(entries: Sequence[Entry]) -> FileLayout:
    """Wide numbers come first, so that each tensor is aligned to its own. Raises KeyError for a type that the format
    has not."""
    begin, places, fields = 0, {}, {}
    for entry in sorted(entries, key=lambda entry: -entry.dtype.itemsize):
        end = begin + entry.size
        fields[entry.name] = {"dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
        places[entry.name], begin = begin, end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    offsets = {name: len(header) + place for name, place in places.items()}
    return FileLayout(header=header, offsets=offsets, size=len(header) + begin)


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """Its bytes, uint8: a view where it lies in the memory of this machine without gaps, else a copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
