"""Saves and restores a rank's model, optimizer and schedule, bit for bit and without pickle.

DeepSpeed's own checkpoints, like torch.save, are pickles, which run code when read. DeepSpeed's optimizers also export
their state as dictionaries. These are stored as one safetensors file: tensors bit for bit, the rest as JSON in the
header.
"""

import enum
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from common.errors import InputError
from learner.checkpoint import fingerprint
from learner.lora import ADAPTER_FOLDER, Adapters, check_adapters, load_adapters, save_adapters
from weight_sync.source import named_weights

CONSTANT = ("loss_scaler", "param_slice_mappings", "lr_lambdas")
"""Keys whose values are DeepSpeed objects or functions. They are equal in engines with equal settings."""


def save_model(model: Any, start: Path, directory: Path, adapters: Adapters | None = None) -> None:
    """Write a Hugging Face checkpoint with merged adapters and the start checkpoint's tokenizer.

    Raises SafetensorError or OSError.
    """
    state = {name: parameter.data.clone() for name, parameter in named_weights(model)}
    if adapters is not None:
        state = adapters.merged_state(state)
    for alias in getattr(model, "_tied_weights_keys", None) or []:
        if model.config.tie_word_embeddings:
            state.pop(alias, None)
    model.save_pretrained(directory, state_dict=state)
    if adapters is not None:
        save_adapters(adapters, str(start), directory / ADAPTER_FOLDER)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (start / name).is_file():
            shutil.copy(start / name, directory / name)


@torch.no_grad()
def load_model(model: Any, directory: Path, adapters: Adapters | None = None) -> None:
    """Copy what `save_model` wrote into the existing parameters, of which DeepSpeed holds views.

    With adapters, only these are copied: no other parameter has changed. Raises InputError.
    """
    if adapters is not None:
        load_adapters(adapters, directory / ADAPTER_FOLDER)
        return
    own = dict(named_weights(model))
    try:
        dtype = next(iter(own.values())).dtype
        # The class is already known: never run code that the checkpoint names.
        saved = type(model).from_pretrained(directory, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{directory} holds no readable model: {' '.join(str(error).split())}") from error
    for name, parameter in named_weights(saved):
        own[name].copy_(parameter)


def collect_state(engine: Any) -> dict:
    """Return a DeepSpeed engine's optimizer and schedule. With ZeRO: this rank's part, float32 weights included."""
    return {name: _constant(part, False) for name, part in _parts(engine).items()}


def restore_state(engine: Any, stage: int, ranks: int, state: dict) -> None:
    """Restore what `collect_state` returned on this rank, with the same number of ranks and the same stage.

    Load the model's weights first, except at stage 3, where they are part of the state.
    """
    full = {name: _constant(part, True) | state[name] for name, part in _parts(engine).items()}
    optimizer = engine.optimizer
    if stage == 0:
        optimizer.load_state_dict(full["optimizer"])
    else:
        if stage == 3:  # small parameters stay gathered between steps, and would keep their old values
            optimizer.checkpoint_event_prologue()
        # A list of all ranks' states, of which DeepSpeed reads its own.
        optimizer.load_state_dict([full["optimizer"]] * ranks, load_from_fp32_weights=True)
        if stage == 3:
            optimizer.checkpoint_event_epilogue()
    engine.lr_scheduler.load_state_dict(full["schedule"])


def _parts(engine: Any) -> dict[str, dict]:
    return {"optimizer": engine.optimizer.state_dict(), "schedule": engine.lr_scheduler.state_dict()}


def _constant(part: dict, constant: bool) -> dict:
    return {key: value for key, value in part.items() if (key in CONSTANT) == constant}


def check_saved_state(model: nn.Module, directory: Path, saved: str, adapters: Adapters | None = None) -> None:
    """Raise InputError unless a checkpoint has the model's parameters and adapters. saved: its fingerprint."""
    if adapters is not None:
        check_adapters(adapters, directory / ADAPTER_FOLDER)  # first: it can name the difference
    if saved != model_fingerprint(model):
        raise InputError(
            f"{directory} was saved of other parameters, or with others frozen or adapted, than model.path, "
            "model.freeze and learner.lora have now; resume with the values it was saved with"
        )


def model_fingerprint(model: nn.Module) -> str:
    return fingerprint(
        (name, tuple(getattr(parameter, "ds_shape", parameter.shape)), parameter.requires_grad)
        for name, parameter in named_weights(model)
    )


HEADER = "tree"


def write_state_tree(path: Path, tree: Any) -> None:
    """Write dictionaries, lists and tuples of tensors, numbers, strings and None.

    Raises TypeError for any other value, and SafetensorError if the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(_flatten(tree, tensors))
    save_file(tensors, path, metadata={HEADER: header})


def read_state_tree(path: Path) -> Any:
    """Read what `write_state_tree` wrote, tensors on the CPU. Raises InputError if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return _unflatten(json.loads(file.metadata()[HEADER]), file.get_tensor)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}; it is missing or damaged") from error


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # Copy: many of an optimizer's tensors are views into one buffer, which safetensors rejects.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _flatten(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_flatten(item, tensors) for item in value]}
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be stored in a safetensors file")


def _unflatten(node: Any, tensor: Any) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "dict":
        return {key: _unflatten(item, tensor) for key, item in content}
    items = [_unflatten(item, tensor) for item in content]
    return tuple(items) if kind == "tuple" else items
