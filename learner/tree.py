"""Nested state in one safetensors file: tensors as they are, bit for bit, and the rest as JSON in the file's header.

Nothing that is read here can run code, as a pickle could (torch.save, DeepSpeed's own checkpoints).
"""

import enum
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from speech.errors import InputError

HEADER = "tree"


def write_tree(path: Path, tree: Any) -> None:
    """tree: dictionaries, lists and tuples of tensors, numbers, strings and None. Raises TypeError for anything else,
    SafetensorError when it cannot be written."""
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(_taken_apart(tree, tensors))
    save_file(tensors, path, metadata={HEADER: header})


def read_tree(path: Path) -> Any:
    """What `write_tree` wrote, tensors on the CPU. Raises InputError naming the file when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return _put_together(json.loads(file.metadata()[HEADER]), file.get_tensor)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}; it is missing or damaged") from error


def _taken_apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy: many of an optimiser's tensors are views into one buffer, which safetensors would refuse.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _taken_apart(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_taken_apart(item, tensors) for item in value]}
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a safetensors file")


def _put_together(node: Any, tensor: Any) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "dict":
        return {key: _put_together(item, tensor) for key, item in content}
    items = [_put_together(item, tensor) for item in content]
    return tuple(items) if kind == "tuple" else items
