"""Into and out of a rank: the model, and all that DeepSpeed keeps to go on from, bit for bit.

DeepSpeed's own checkpoints are pickles, which run code when they are read. Its optimisers give their state as
dictionaries, though, and take it back; those are kept here without a pickle (`learner.checkpoint_state`).

Nested state in one safetensors file: tensors as they are, bit for bit, and the rest as JSON in the file's header.

Nothing that is read here can run code, as a pickle could (torch.save, DeepSpeed's own checkpoints).
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
"""Parts of the state that are objects of DeepSpeed's classes, or functions: the same in engines built alike."""


def save_model(model: Any, start: Path, directory: Path, adapters: Adapters | None = None) -> None:
    """A Hugging Face checkpoint with the tokenizer of the one that training started from. Adapters are merged into it:
    whoever reads it need not know of them. Raises SafetensorError or OSError."""
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
    """What `save_model` wrote, into the parameters that there are: DeepSpeed holds views of them. With adapters these
    alone, the others being as they were. Raises InputError."""
    if adapters is not None:
        load_adapters(adapters, directory / ADAPTER_FOLDER)
        return
    own = dict(named_weights(model))
    try:
        dtype = next(iter(own.values())).dtype
        # The class is there already: whatever code the checkpoint names is not asked for.
        saved = type(model).from_pretrained(directory, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{directory} holds no readable model: {' '.join(str(error).split())}") from error
    for name, parameter in named_weights(saved):
        own[name].copy_(parameter)


def collect_state(engine: Any) -> dict:
    """Optimiser and schedule of a DeepSpeed engine; with ZeRO this rank's part, its float32 weights included."""
    return {name: _constant(part, False) for name, part in _parts(engine).items()}


def restore_state(engine: Any, stage: int, ranks: int, state: dict) -> None:
    """What `collect_state` gave on this rank of as many, at the same stage. The model must have its weights by now,
    except at stage 3, where they are part of the state."""
    whole = {name: _constant(part, True) | state[name] for name, part in _parts(engine).items()}
    optimizer = engine.optimizer
    if stage == 0:
        optimizer.load_state_dict(whole["optimizer"])
    else:
        if stage == 3:  # small parameters lie whole on every rank between steps, and would keep their old values
            optimizer.checkpoint_event_prologue()
        # A list with a state for each rank, of which DeepSpeed reads its own.
        optimizer.load_state_dict([whole["optimizer"]] * ranks, load_from_fp32_weights=True)
        if stage == 3:
            optimizer.checkpoint_event_epilogue()
    engine.lr_scheduler.load_state_dict(whole["schedule"])


def _parts(engine: Any) -> dict[str, dict]:
    return {"optimizer": engine.optimizer.state_dict(), "schedule": engine.lr_scheduler.state_dict()}


def _constant(part: dict, constant: bool) -> dict:
    return {key: value for key, value in part.items() if (key in CONSTANT) == constant}


def check_saved_state(model: nn.Module, directory: Path, saved: str, adapters: Adapters | None = None) -> None:
    """Raises InputError unless a checkpoint is of the model's parameters, by the fingerprint that was saved with it,
    and of its adapters."""
    if adapters is not None:
        check_adapters(adapters, directory / ADAPTER_FOLDER)  # which can say what is not the same
    if saved != model_fingerprint(model):
        raise InputError(
            f"{directory} was saved of other parameters, or with others frozen or adapted, than model.path, "
            "model.freeze and learner.lora have now"
        )


def model_fingerprint(model: nn.Module) -> str:
    return fingerprint(
        (name, tuple(getattr(parameter, "ds_shape", parameter.shape)), parameter.requires_grad)
        for name, parameter in named_weights(model)
    )


HEADER = "tree"


def write_state_tree(path: Path, tree: Any) -> None:
    """tree: dictionaries, lists and tuples of tensors, numbers, strings and None. Raises TypeError for anything else,
    SafetensorError when it cannot be written."""
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(_taken_apart(tree, tensors))
    save_file(tensors, path, metadata={HEADER: header})


def read_state_tree(path: Path) -> Any:
    """What `write_state_tree` wrote, tensors on the CPU. Raises InputError naming the file when it is missing or
    damaged."""
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
