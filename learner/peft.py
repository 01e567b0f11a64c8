"""Adapters on disk, in PEFT's format, so that PEFT and vLLM can load them by themselves.

    DIRECTORY/adapter_config.json, adapter_model.safetensors

The format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from learner.lora import Adapters
from speech.errors import InputError

FOLDER = "adapter"
"""Of a checkpoint: beside its weights these files would be taken for weights."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapters(adapters: Adapters, base: str, directory: Path) -> None:
    """base: the checkpoint that they belong to. Raises SafetensorError or OSError."""
    directory.mkdir(exist_ok=True)
    parts = {name: part.detach().cpu().contiguous() for name, part in adapters.named().items()}
    save_file(parts, directory / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.settings.rank,
        "lora_alpha": adapters.settings.alpha,
        "target_modules": sorted(adapters.layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2))


def check_adapters(adapters: Adapters, directory: Path) -> None:
    """Raises InputError unless `save_adapters` wrote there what these are: rank, alpha and layers the same."""
    try:
        then = json.loads((directory / CONFIG).read_text())
        numbers = {"rank": then["r"], "alpha": then["lora_alpha"]}
        layers = {str(name) for name in then["target_modules"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"learner.lora.rank: {adapters.settings.rank}, but {directory} holds no readable adapters: {error!r}; go "
            "on with learner.lora.rank=0 if the checkpoint was saved without"
        ) from error
    for key, saved in numbers.items():
        if (now := getattr(adapters.settings, key)) != saved:
            raise InputError(
                f"learner.lora.{key}: {now}, but {directory} was saved with {saved}; go on with learner.lora.{key}="
                f"{saved}"
            )
    if other := sorted(layers ^ set(adapters.layers)):
        raise InputError(
            f"learner.lora.targets: {', '.join(adapters.settings.targets)} and model.frozen do not name the layers "
            f"that {directory} was saved with adapters of; {other[0]} is one of the {len(other)} that differ"
        )


@torch.no_grad()
def load_adapters(adapters: Adapters, directory: Path) -> None:
    """What `save_adapters` wrote, into the parameters that there are: DeepSpeed holds views of them. Raises
    InputError."""
    try:
        saved = load_file(directory / WEIGHTS)
        for name, parameter in adapters.named().items():
            parameter.copy_(saved[name])
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory} holds no readable adapters: {error}") from error
