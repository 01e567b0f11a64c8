"""LoRA adapters (arXiv 2106.09685), made, trained and stored by PEFT.

y = W·x + b + (alpha / rank) · B·(A·x)      A: [rank, inputs], random; B: [outputs, rank], 0 at the start

On disk they are in PEFT's format, so that PEFT and vLLM can load them:

    DIRECTORY/adapter_config.json, adapter_model.safetensors

The format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
import re
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import InputError
from learner.config import LoraConfig
from learner.parameter_filter import adapted_layers
from weight_sync.lora_merge import add_adapter
from weight_sync.update import adapter_name

SEED = 0
"""Seed of A: the same on every rank and in every run."""

ADAPTER_FOLDER = "adapter"
"""Subfolder of a checkpoint. Beside the checkpoint's weights, these files would be taken for weights."""

ADAPTER = "default"
"""PEFT's name of the only adapter."""


class Adapters:
    """The adapters of a model. Making them puts PEFT's layers into the model and freezes everything else."""

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        """Add an adapter to each layer that the configuration names.

        Args:
            model: A model to which `model.freeze` was applied. It is changed in place.

        Raises InputError as `adapted_layers` does.
        """
        self.config = config
        uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        # A tied weight is also the embedding, which an adapter of the linear layer does not reach.
        linear = {
            name: module
            for name, module in model.named_modules()
            if type(module) is nn.Linear and uses[id(module.weight)] == 1
        }
        frozen = [name for name, layer in linear.items() if not layer.weight.requires_grad]
        found = adapted_layers({name: tuple(layer.weight.shape) for name, layer in linear.items()}, config, frozen)
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=config.r,
            lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it by r; any number will do
            target_modules="|".join(map(re.escape, found)),  # a list would also match by the end of a name
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            # Float32 in a bfloat16 model too. DeepSpeed then computes in its own type, from float32 master weights.
            self.peft_model = peft.PeftModel(model, lora, adapter_name=ADAPTER, autocast_adapter_dtype=True)
        self.layers: dict[str, LoraLinear] = {
            name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)
        }
        if self.layers.keys() != found.keys():
            raise RuntimeError(f"PEFT adapted {sorted(self.layers)}, expected {sorted(found)}")
        lora.target_modules = set(found)  # type: ignore[assignment]  # PEFT lists a set in the file

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return A and B of each layer, under the names that PEFT's files use."""
        return {
            adapter_name(name, part): getattr(layer, f"lora_{part}")[ADAPTER].weight
            for name, layer in self.layers.items()
            for part in ("A", "B")
        }

    def disabled(self) -> AbstractContextManager:
        """Context in which the model is the start model, the reference of the KL."""
        disable: Any = self.peft_model.disable_adapter
        return disable()

    def merged_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of a model without adapters that computes the same.

        Args:
            state: Weights under the names of the model with adapters.
        """
        merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
        for name, layer in self.layers.items():
            a, b = (getattr(layer, f"lora_{part}")[ADAPTER].weight.detach() for part in ("A", "B"))
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = add_adapter(weight, a, b, self.config.scale).to(weight.dtype)
        return merged


def save_adapters(adapters: Adapters, base: str, directory: Path) -> None:
    """Write the adapters in PEFT's format.

    Args:
        base: The checkpoint that they belong to.

    Raises SafetensorError or OSError.
    """
    adapters.peft_model.peft_config[ADAPTER].base_model_name_or_path = base
    adapters.peft_model.save_pretrained(str(directory), save_embedding_layers=False)


def check_adapters(adapters: Adapters, directory: Path) -> None:
    """Raise InputError unless the saved adapters have the same rank, alpha and layers."""
    try:
        then = json.loads((directory / CONFIG_NAME).read_text())
        numbers = {key: then[key] for key in ("r", "lora_alpha")}
        layers = {str(name) for name in then["target_modules"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"learner.lora.r: {adapters.config.r}, but {directory} holds no readable adapters: {error!r}; "
            "resume with learner.lora.r=0 if the checkpoint was saved without"
        ) from error
    for key, saved in numbers.items():
        if (now := getattr(adapters.config, key)) != saved:
            raise InputError(
                f"learner.lora.{key}: {now}, but {directory} was saved with {saved}; resume with learner.lora.{key}="
                f"{saved}"
            )
    if other := sorted(layers ^ adapters.layers.keys()):
        raise InputError(
            f"learner.lora.target_modules: {', '.join(adapters.config.target_modules)} and model.freeze do not name the"
            f" layers that {directory} was saved with adapters of; {other[0]} is one of the {len(other)} that differ"
        )


@torch.no_grad()
def load_adapters(adapters: Adapters, directory: Path) -> None:
    """Copy saved adapters into the existing parameters, of which DeepSpeed holds views. Raises InputError."""
    try:
        saved = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
        if missing := adapters.parameters().keys() - saved.keys():
            raise InputError(f"{directory} holds no readable adapters: {min(missing)} is missing")
        peft.set_peft_model_state_dict(adapters.peft_model, saved, adapter_name=ADAPTER)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"{directory} holds no readable adapters: {error}") from error
