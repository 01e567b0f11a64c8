"""LoRA adapters: computation, training, saving, sending, and rejected settings."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.errors import InputError
from learner.checkpoint_state import load_model, save_model
from learner.config import LoraConfig
from learner.lora import ADAPTER_FOLDER, Adapters, check_adapters, load_adapters
from learner.parameter_filter import adapted_layers, freeze
from weight_sync.source import WeightSource, named_weights

SETTINGS = LoraConfig(r=4, lora_alpha=8.0, target_modules=("*_proj",))
IDS = torch.arange(3, 15)[None]
LAYERS = {"a.q_proj": (8, 6), "a.k_proj": (4, 6), "b.q_proj": (8, 6), "lm_head": (32, 6)}


@pytest.fixture
def base(world):
    return AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32).eval()


def moved(model, adapters: Adapters) -> Adapters:
    """Change every matrix, as some steps would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters().values():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return adapters


def outputs(model) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(IDS).logits, -1)


def test_adapters_begin_as_nothing_and_the_same_everywhere(base, world):
    before = outputs(base)
    adapters = Adapters(base, SETTINGS)
    assert torch.equal(outputs(base), before)
    again = Adapters(AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32), SETTINGS).parameters()
    assert adapters.parameters().keys() == again.keys()
    assert all(torch.equal(parameter, again[name]) for name, parameter in adapters.parameters().items())
    first = next(iter(adapters.layers.values()))
    assert first.lora_A["default"].weight.abs().max() > 0
    assert first.lora_B["default"].weight.abs().max() == 0


def test_only_adapters_get_a_gradient(base):
    adapters = moved(base, Adapters(base, SETTINGS))
    base(IDS).logits.square().sum().backward()
    own = {id(parameter) for parameter in adapters.parameters().values()}
    assert len(own) == 2 * 7 * base.config.num_hidden_layers
    for name, parameter in named_weights(base):
        assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in own), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name


def test_without_them_the_model_is_the_start_model_to_the_bit(base):
    before = outputs(base)
    adapters = moved(base, Adapters(base, SETTINGS))
    assert (outputs(base) - before).abs().max() > 0.1
    with adapters.disabled():
        assert torch.equal(outputs(base), before)
    assert (outputs(base) - before).abs().max() > 0.1


def test_what_is_saved_is_a_model_that_needs_no_adapters_and_computes_the_same(base, world, tmp_path):
    adapters = moved(base, Adapters(base, SETTINGS))
    save_model(base, world / "base", tmp_path, adapters)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = outputs(base)
    assert (outputs(merged) - expected).abs().max() < 1e-5 * expected.abs().max()
    old, new = load_file(world / "base/model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert old.keys() == new.keys()
    changed = {name.removesuffix(".weight") for name in old if not torch.equal(old[name], new[name])}
    assert changed == set(adapters.layers)


@pytest.mark.e2e  # vLLM is imported
def test_files_are_those_of_peft(base, world, tmp_path):
    """vLLM reads PEFT's names, rank and alpha, and rejects unknown ones."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    adapters = moved(base, Adapters(base, SETTINGS))
    save_model(base, world / "base", tmp_path, adapters)
    folder = tmp_path / ADAPTER_FOLDER
    helper = PEFTHelper.from_local_dir(str(folder), max_position_embeddings=None)
    found = LoRAModel.from_local_checkpoint(
        str(folder), {name.rpartition(".")[2] for name in adapters.layers}, helper, lora_model_id=1, device="cpu"
    )
    assert set(found.loras) == set(adapters.layers)
    for name, layer in adapters.layers.items():
        assert torch.equal(found.loras[name].lora_a, layer.lora_A["default"].weight)
        assert found.loras[name].scaling == SETTINGS.scale == 2.0
        assert torch.equal(found.loras[name].lora_b, layer.lora_B["default"].weight)


def test_adapters_come_back_as_they_were(base, world, tmp_path):
    save_model(base, world / "base", tmp_path, moved(base, Adapters(base, SETTINGS)))
    other = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32).eval()
    adapters = Adapters(other, SETTINGS)
    held = {name: parameter.data_ptr() for name, parameter in adapters.parameters().items()}
    check_adapters(adapters, tmp_path / ADAPTER_FOLDER)
    load_model(other, tmp_path, adapters)
    assert torch.equal(outputs(other), outputs(base))
    assert {name: parameter.data_ptr() for name, parameter in adapters.parameters().items()} == held


@pytest.mark.parametrize(
    ("changes", "frozen", "complaint"),
    [
        ({"r": 8}, (), r"learner\.lora\.r: 8, but .* was saved with 4; resume with learner\.lora\.r=4"),
        ({"lora_alpha": 4.0}, (), r"learner\.lora\.lora_alpha: 4\.0, but .* was saved with 8\.0"),
        (
            {"target_modules": ("*.q_proj",)},
            (),
            r"learner\.lora\.target_modules: \*\.q_proj and model\.freeze do not name the layers",
        ),
        ({}, ("model.layers.0.*",), r"model\.layers\.0\.mlp\.down_proj is one of the 7 that differ"),
    ],
)
def test_other_adapters_than_those_saved_are_refused(base, world, tmp_path, changes, frozen, complaint):
    save_model(base, world / "base", tmp_path, Adapters(base, SETTINGS))
    other = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    freeze(other, frozen)
    with pytest.raises(InputError, match=complaint):
        check_adapters(Adapters(other, replace(SETTINGS, **changes)), tmp_path / ADAPTER_FOLDER)


def test_files_that_are_damaged_are_refused(base, world, tmp_path):
    adapters = Adapters(base, SETTINGS)
    with pytest.raises(InputError, match=r"learner\.lora\.r: 4, but .* resume with learner\.lora\.r=0 if"):
        check_adapters(adapters, tmp_path / ADAPTER_FOLDER)
    save_model(base, world / "base", tmp_path, adapters)
    file = tmp_path / ADAPTER_FOLDER / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="holds no readable adapters"):
        load_adapters(adapters, tmp_path / ADAPTER_FOLDER)
    config = tmp_path / ADAPTER_FOLDER / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": 3}))
    with pytest.raises(InputError, match="holds no readable adapters"):
        check_adapters(adapters, tmp_path / ADAPTER_FOLDER)
    shutil.rmtree(tmp_path / ADAPTER_FOLDER)
    with pytest.raises(InputError, match="holds no readable adapters"):
        load_adapters(adapters, tmp_path / ADAPTER_FOLDER)


def test_what_is_frozen_gets_none(base):
    freeze(base, ("model.layers.0.*", "*.1.mlp.up_proj.weight"))
    adapters = Adapters(base, SETTINGS)
    assert not any(name.startswith("model.layers.0.") for name in adapters.layers)
    assert "model.layers.1.mlp.up_proj" not in adapters.layers
    assert "model.layers.1.mlp.gate_proj" in adapters.layers


def test_adapters_alone_are_sent(base):
    everything = WeightSource(base, sharded=False)
    adapters = moved(base, Adapters(base, SETTINGS))
    source = WeightSource(base, sharded=False, named=adapters.parameters())
    assert not source.whole
    sent = {name: tensor for group in source for name, tensor in group.items()}
    assert sent.keys() == adapters.parameters().keys()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(sent[name], adapters.layers["model.layers.0.self_attn.q_proj"].lora_A["default"].weight)
    elements = sum(4 * (layer.in_features + layer.out_features) for layer in adapters.layers.values())
    assert sum(entry.size for group in source.groups for entry in group) == 4 * elements
    assert 4 * elements < 0.1 * sum(entry.size for group in everything.groups for entry in group)


@pytest.mark.parametrize(
    ("changes", "frozen", "complaint"),
    [
        (
            {"target_modules": ("*.q_proj", "experts.*")},
            (),
            r"target_modules: 'experts\.\*' matches no linear layer .* end with k_proj, lm_head, q_proj, …",
        ),
        ({"r": 5}, (), r"learner\.lora\.r: 5 exceeds a\.k_proj, which has 6 inputs and 4 outputs; use at most 4"),
        (
            {"target_modules": ("b.*",)},
            ("b.q_proj",),
            r"learner\.lora\.target_modules: b\.\* match only layers that model\.freeze freezes",
        ),
    ],
)
def test_settings_that_do_not_fit_a_model_are_refused(changes, frozen, complaint):
    with pytest.raises(InputError, match=complaint):
        adapted_layers(LAYERS, replace(SETTINGS, **changes), frozen)


def test_which_layers_are_adapted():
    assert adapted_layers(LAYERS, SETTINGS, ["b.q_proj"]) == {"a.q_proj": (6, 8), "a.k_proj": (6, 4)}
    assert set(adapted_layers(LAYERS, replace(SETTINGS, target_modules=("lm_*",)))) == {"lm_head"}


def test_a_tied_output_layer_gets_none(world):
    """It is also the embedding, which an adapter of the layer does not reach."""
    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(InputError, match="'lm_head' matches no linear layer with an untied weight"):
        Adapters(model, replace(SETTINGS, target_modules=("lm_head",)))
    assert "lm_head" not in Adapters(model, replace(SETTINGS, target_modules=("*",))).layers
