"""Low-rank adapters: W stays as it is, and B·A beside it is trained (LoRA, arXiv 2106.09685).

y = W·x + b + (alpha / rank) · B·(A·x)      A: [rank, inputs], at random; B: [outputs, rank], 0 at the start

Adapters on disk, in PEFT's format, so that PEFT and vLLM can load them by themselves.

    DIRECTORY/adapter_config.json, adapter_model.safetensors

The format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import InputError
from learner.config import LoraConfig
from learner.parameter_filter import adapted_layers
from weight_sync.update import adapter_name

SEED = 0
"""Of A, the same on every rank and in every run."""


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter beside its weight, which keeps its name.

    A and B belong to the layer itself and are no layers within it, so that ZeRO-3 gathers them with the weight, and
    meets the same layers in the same order whether they count or not.
    """

    def __init__(self, layer: nn.Linear, settings: LoraConfig, generator: torch.Generator) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make another weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)
        self.scale, self.adapting = settings.scale, True
        drawn = torch.empty(settings.rank, self.in_features)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)  # as nn.Linear draws its weight
        self.lora_A = nn.Parameter(drawn.to(layer.weight))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, settings.rank).to(layer.weight))
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        if not self.adapting:
            return output
        return output + self.scale * nn.functional.linear(nn.functional.linear(input, self.lora_A), self.lora_B)

    def merged(self) -> Tensor:
        """W + scale · B·A, reckoned in float32, as the weight is: what a worker makes of it
        (`weight_sync/vllm_receiver.py`)."""
        product = self.lora_B.detach().float() @ self.lora_A.detach().float()
        return (self.weight.detach().float() + self.scale * product).to(self.weight.dtype)


class Adapters:
    """All that a model has. Making them freezes everything else."""

    def __init__(self, model: nn.Module, settings: LoraConfig) -> None:
        """model: in which what `model.freeze` names is frozen already. Raises InputError as `adapted_layers` does."""
        self.settings = settings
        uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        # A tied weight is an embedding too, which no adapter of a linear layer reaches.
        linear = {
            name: module
            for name, module in model.named_modules()
            if type(module) is nn.Linear and uses[id(module.weight)] == 1
        }
        frozen = [name for name, layer in linear.items() if not layer.weight.requires_grad]
        found = adapted_layers({name: tuple(layer.weight.shape) for name, layer in linear.items()}, settings, frozen)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(SEED)
        self.layers = {name: AdaptedLinear(linear[name], settings, generator) for name in found}
        for name, layer in self.layers.items():
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer)

    def named(self) -> dict[str, nn.Parameter]:
        """Their parameters, by the names that they travel and are kept under."""
        return {
            adapter_name(name, part): getattr(layer, f"lora_{part}")
            for name, layer in self.layers.items()
            for part in ("A", "B")
        }

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model is the start model for as long as the context lasts."""
        for layer in self.layers.values():
            layer.adapting = False
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.adapting = True


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
            f"learner.lora.r: {adapters.settings.rank}, but {directory} holds no readable adapters: {error!r}; go "
            "on with learner.lora.r=0 if the checkpoint was saved without"
        ) from error
    for key, saved in numbers.items():
        if (now := getattr(adapters.settings, key)) != saved:
            raise InputError(
                f"learner.lora.{key}: {now}, but {directory} was saved with {saved}; go on with learner.lora.{key}="
                f"{saved}"
            )
    if other := sorted(layers ^ set(adapters.layers)):
        raise InputError(
            f"learner.lora.target_modules: {', '.join(adapters.settings.targets)} and model.freeze do not name the "
            "layers "
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
