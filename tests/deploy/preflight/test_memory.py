"""The estimate of memory: what is exact agrees with those who know, what is not is a bound of what was measured."""

import json
from dataclasses import replace

import pytest
import torch

from common.errors import InputError
from controller.checkpoint_checks import check_adapters_fit, check_weights
from deploy.preflight import memory
from deploy.preflight.memory import (
    FLOAT32,
    GIB,
    MemoryNeed,
    activation_memory,
    cache_of_sequence,
    learner_memory,
    read_model_shape,
    rollout_memory,
)
from learner.config import LoraConfig
from learner.lora import Adapters
from learner.parameter_filter import freeze
from learner.policy import MAX_LOGITS, PolicyModel
from speech.families import PLAYGROUND
from speech.grammar import token_kinds
from speech.vocabulary import Vocabulary
from tests.deploy.preflight.cases import SEVEN_BILLION, configured

BF16 = ("model.dtype=bfloat16", "weight_sync.max_logprob_diff=5e-2")


@pytest.fixture(scope="module")
def model(world):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(world / "base")


@pytest.fixture(scope="module")
def settings(world) -> dict:
    return json.loads((world / "base/config.json").read_text())


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


def of_the_world(root, settings, vocabulary, *overrides):
    config = configured(root, *overrides)
    tensors = check_weights(config, vocabulary)
    found = read_model_shape(
        settings, tensors, config.model.freeze, config.learner.lora.r, check_adapters_fit(config, tensors)
    )
    return config, found


def test_parameters_are_those_of_the_model(root, model, settings, vocabulary):
    _, found = of_the_world(root, settings, vocabulary)
    assert found.parameters == found.trained == found.sent == sum(p.numel() for p in model.parameters())
    _, frozen = of_the_world(root, settings, vocabulary, "model.freeze=['*embed_tokens*']")
    assert frozen.parameters - frozen.trained == settings["vocab_size"] * settings["hidden_size"]


def test_a_tied_output_layer_is_sent_besides(settings):
    tensors = {"model.embed_tokens.weight": [547, 192], "model.norm.weight": [192]}
    found = read_model_shape(settings, tensors, [])
    assert found.tied
    assert found.parameters == 547 * 192 + 192
    assert found.sent == 2 * 547 * 192 + 192


def test_a_configuration_that_does_not_say_enough(settings):
    with pytest.raises(InputError, match="num_hidden_layers None"):
        read_model_shape({name: value for name, value in settings.items() if name != "num_hidden_layers"}, {}, [])


def test_keys_and_values_are_as_large_as_the_models_own_cache(root, model, settings, vocabulary):
    config, found = of_the_world(root, settings, vocabulary)
    length = config.model.max_model_len
    cache = model(torch.zeros(1, length, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_of_sequence(config, found) == held


@pytest.mark.parametrize("rank", [0, 8])
def test_activations_are_a_near_bound_of_what_autograd_keeps(root, world, settings, vocabulary, rank):
    """A full micro-batch, forward and backward; what the backward pass holds, each storage once. With adapters too."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world / "base")
    if rank:
        Adapters(model, LoraConfig(r=rank, lora_alpha=16.0, target_modules=("*_proj",)))
    rows, length, reply = 8, 192, 96
    config, found = of_the_world(
        root,
        settings,
        vocabulary,
        "learner.sequence_packing=false",
        "learner.max_tokens_per_micro_batch=1536",
        "learner.num_workers=1",
        f"rollout.max_new_tokens={reply}",
        f"learner.lora.r={rank}",
    )
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    scorer = PolicyModel(model, torch.from_numpy(token_kinds(vocabulary)))
    sources = torch.cat([torch.arange(row * length + length - reply, (row + 1) * length) for row in range(rows)])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps, _ = scorer(
            torch.zeros(rows, length, dtype=torch.int64),
            sources,
            torch.zeros_like(sources),
            torch.zeros_like(sources),
            torch.ones(len(sources)),
        )
    assert logps.requires_grad
    bound = sum(activation_memory(config, found).values())
    assert 1.0 <= bound / sum(held.values()) <= 1.25


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_states_are_as_deepspeed_itself_reckons_them(root, ranks):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    def states(stage: int) -> float:
        config = configured(
            root, *BF16, f"learner.zero_stage={stage}", f"learner.num_workers={ranks}", "learner.num_gpus=1"
        )
        parts = learner_memory(config, SEVEN_BILLION, reference=False).device
        return parts["weights"] + parts["gradients"] + parts["optimizer"]

    total = SEVEN_BILLION.parameters
    _, second = estimate_zero2_model_states_mem_needs(total, num_gpus_per_node=ranks, cpu_offload=False)
    _, third, _ = estimate_zero3_model_states_mem_needs(
        total, 0, num_gpus_per_node=ranks, cpu_offload=False, cpu_offload_params=False
    )
    assert states(2) == pytest.approx(second)
    # There it counts 18 bytes a parameter; 16 always, and 4 of a group that is being moved, come near it.
    assert states(3) == pytest.approx(third, rel=0.12)
    assert states(1) == pytest.approx(second + 2 * total * (1 - 1 / ranks))  # gradients are whole on every rank


def test_the_start_model_is_there_when_the_objective_compares(root):
    config = configured(root, *BF16)
    without, with_it = (learner_memory(config, SEVEN_BILLION, reference=told).memory for told in (False, True))
    assert "start model" not in without
    assert with_it["start model"] == 2 * SEVEN_BILLION.parameters


def test_an_engine_of_several_gpus_has_a_part_of_the_weights_on_each(root):
    one, two = (
        rollout_memory(
            configured(root, *BF16, f"rollout.num_gpus={count}", f"rollout.tensor_parallel_size={count}"), SEVEN_BILLION
        ).device["weights"]
        for count in (1, 2)
    )
    assert one == 2 * two == 2 * SEVEN_BILLION.parameters


def test_an_engine_on_the_cpu_takes_its_cache_at_once(root):
    need = rollout_memory(configured(root, "rollout.cpu_kv_cache_gib=3"), SEVEN_BILLION)
    assert need.memory["KV cache"] == 3 * GIB
    assert not need.device


def test_a_sharded_model_is_whole_while_it_is_saved(root):
    config = configured(root, *BF16, "learner.zero_stage=3", "learner.num_workers=4")
    parts = learner_memory(config, SEVEN_BILLION, reference=False).memory
    whole = 2 * SEVEN_BILLION.parameters
    assert (parts["weights"], parts["weights gathered for saving"], parts["weights during saving"]) == (
        whole / 4,
        whole,
        whole,
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_holds_the_model_and_every_ranks_optimiser(root, stage):
    config = configured(root, f"learner.zero_stage={stage}", "learner.num_workers=2")
    moments = 2 * FLOAT32 * SEVEN_BILLION.parameters
    whole = 2 * moments if stage == 0 else moments + FLOAT32 * SEVEN_BILLION.parameters
    assert memory.checkpoint(config, SEVEN_BILLION) == FLOAT32 * SEVEN_BILLION.parameters + whole


def test_micro_batches_decide_the_activations(root):
    few, many = (
        activation_memory(configured(root, f"learner.max_tokens_per_micro_batch={tokens}"), SEVEN_BILLION)[
            "activations"
        ]
        for tokens in (400, 1600)
    )
    assert many == 4 * few


def test_layers_that_are_computed_again_keep_what_goes_into_them(root):
    settings = (*BF16, "learner.sequence_packing=false", "learner.max_tokens_per_micro_batch=1000")
    config = configured(root, *settings, "learner.gradient_checkpointing=true")
    tokens = max(1000, config.model.max_model_len)
    layers = SEVEN_BILLION.layers
    kept = activation_memory(configured(root, *settings), SEVEN_BILLION)["activations"]
    norm = tokens * SEVEN_BILLION.width * (FLOAT32 + 2 * 2)
    one = (kept - norm) / layers
    found = activation_memory(config, SEVEN_BILLION)["activations"]
    assert found == pytest.approx(norm + one + layers * tokens * 2 * SEVEN_BILLION.width)


def test_what_attention_lays_out_counts_by_its_cells(root):
    """Four times as many as tokens at most, and never more than all rows have."""
    b, model = 2, SEVEN_BILLION
    each = b * (2 * model.width + 2 * model.key_values)

    def more(tokens: int) -> float:
        given = (*BF16, f"learner.max_tokens_per_micro_batch={tokens}")
        packed, padded = (
            activation_memory(configured(root, *given, f"learner.sequence_packing={told}"), model)["activations"]
            for told in ("true", "false")
        )
        return packed - padded - model.layers * tokens * b * model.width

    config = configured(root)
    most = -(-(config.replies + config.anchor.batch_size) // config.learner.num_workers) * config.model.max_model_len
    assert more(1000) == pytest.approx(model.layers * 3 * 1000 * each)
    assert more(most // 2) == pytest.approx(model.layers * most // 2 * each)


def test_logits_are_held_part_by_part(root):
    """As many as a part of the output layer has, however many tokens are scored."""
    many = activation_memory(
        configured(root, "learner.max_tokens_per_micro_batch=100000", "rollout.batch_size=500"), SEVEN_BILLION
    )
    assert many["logits"] == memory.LOGIT_COPIES * FLOAT32 * MAX_LOGITS


def test_every_role_is_counted(root):
    config = configured(root, "rollout.num_workers=2", "reward.num_servers=3")
    found: list[MemoryNeed] = memory.needs(config, SEVEN_BILLION, reference=True)
    assert {need.role: need.count for need in found} == {
        "driver": 1,
        "controller": 1,
        "rollout": 2,
        "reward": 3,
        "learner": 2,
    }


def test_adapters_are_counted_as_they_are_made(root, world, settings, vocabulary):
    from transformers import AutoModelForCausalLM

    config, found = of_the_world(root, settings, vocabulary, "learner.lora.r=8", "model.freeze=['*.layers.0.*']")
    model = AutoModelForCausalLM.from_pretrained(world / "base")
    freeze(model, config.model.freeze)
    made = Adapters(model, LoraConfig(r=8, lora_alpha=16.0, target_modules=tuple(config.learner.lora.target_modules)))
    elements = sum(parameter.numel() for parameter in made.parameters().values())
    assert found.adapters == found.trained == found.sent == elements
    assert found.parameters + elements == sum(parameter.numel() for parameter in model.parameters())
    assert found.adapter_width == sum(layer.r["default"] for layer in made.layers.values())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_adapters_alone_have_gradients_and_an_optimiser_and_need_no_start_model(root, stage):
    config = configured(root, *BF16, f"learner.zero_stage={stage}", "learner.num_workers=2")
    model = replace(SEVEN_BILLION, adapters=20_000_000, trained=20_000_000, adapter_width=1568)
    parts = learner_memory(config, model, reference=True).memory
    whole = 2 * (model.parameters + model.adapters)
    assert "start model" not in parts
    assert parts["weights"] == whole / (2 if stage == 3 else 1)
    assert parts["gradients"] + parts["optimizer"] <= 20 * model.adapters
    assert parts["weights during saving"] == whole
    assert memory.checkpoint(config, model) <= whole + 20 * model.adapters
    plain = learner_memory(config, SEVEN_BILLION, reference=True).memory
    assert plain["activations"] < parts["activations"] < 1.1 * plain["activations"]
