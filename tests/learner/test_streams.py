"""A model of two streams: each token is scored by its own output layer, from the previous step."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from evaluation.diagnosis.gradient_geometry import GradientBatch, log_probabilities
from learner.collate import collate
from learner.micro_batches import TrainingSample
from learner.packed_attention import use_packing
from learner.policy import PolicyModel
from learner.setup import enable_gradient_checkpointing
from speech.grammar import TokenKind
from speech.modeling.kimi_audio import KimiAudioConfig, MoonshotKimiaForCausalLM

KINDS = torch.tensor(
    [0] + [TokenKind.TEXT] * 9 + [TokenKind.SPEECH] * 20 + [TokenKind.FILLER, TokenKind.END_TEXT, TokenKind.STOP],
    dtype=torch.int8,
)
SIZES = dict(
    vocab_size=len(KINDS), hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
    initializer_range=0.3, rope_theta=1e6,
)  # fmt: skip
BRANCH = 1
"""The layer after which the streams part."""


@pytest.fixture
def model() -> MoonshotKimiaForCausalLM:
    torch.manual_seed(0)
    config = KimiAudioConfig(
        **SIZES,
        num_hidden_layers=3,
        kimia_mimo_layers=2,
        kimia_mimo_transformer_from_layer_index=BRANCH,
        kimia_adaptor_input_dim=12,
    )
    return MoonshotKimiaForCausalLM(config).eval()


def row(prompt: int, steps: int, seed: int, *, said: int = 0, **fields) -> TrainingSample:
    """said: Seed of the prompt; equal seeds give equal prompts."""
    rng, first = np.random.default_rng(seed), np.random.default_rng(said)
    return TrainingSample(
        prompt_ids=first.integers(1, 30, 2 * prompt).astype(np.int32),
        reply_ids=rng.integers(1, 30, 2 * steps).astype(np.int32),
        channels=np.tile([0, 1], steps).astype(np.int8),
        rollout_logprobs=np.zeros(2 * steps, dtype=np.float32),
        advantages=(1.0,),
        weights=(1.0,),
        **fields,
    )


ROWS = [row(5, 4, 1), row(5, 7, 2), row(3, 2, 3, said=1), row(1, 5, 4, said=2)]


def expected(model: MoonshotKimiaForCausalLM, one: TrainingSample) -> torch.Tensor:
    """Return log-probabilities [T] by a plain forward pass of one row."""
    ids = torch.from_numpy(np.concatenate([one.prompt_ids, one.reply_ids]).astype(np.int64))
    steps = ids.view(-1, 2)
    hidden = model.model(ids[None]).last_hidden_state[0].view(len(steps), 2, -1)
    logps = [
        torch.log_softmax(layer(hidden[:-1, stream]), -1).gather(-1, steps[1:, stream, None])[:, 0]
        for stream, layer in enumerate([model.lm_head, model.mimo_output])
    ]
    return torch.stack(logps, dim=1).flatten()[-len(one.reply_ids) :]


@torch.no_grad()
def test_the_trunk_is_qwen2_and_so_is_the_branch(model):
    """Released checkpoints compute transformers' Qwen2: both embeddings added; for speech, the first layers and then
    those of the branch."""
    steps = torch.randint(0, len(KINDS), (2, 9, 2))
    logits = model(steps.flatten(1)).logits.unflatten(1, (9, 2))
    state, first = model.state_dict(), BRANCH + 1
    for stream, (head, norm, layers) in enumerate([
        ("lm_head", "norm", [f"layers.{i}" for i in range(3)]),
        ("mimo_output", "mimo_norm", [*(f"layers.{i}" for i in range(first)), "mimo_layers.0", "mimo_layers.1"]),
    ]):  # fmt: skip
        plain = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_hidden_layers=len(layers))).eval()
        own = {"lm_head.weight": state[f"{head}.weight"], "model.norm.weight": state[f"model.{norm}.weight"]}
        own["model.embed_tokens.weight"] = state["model.embed_tokens.weight"]
        for index, layer in enumerate(layers):
            own |= {
                f"model.layers.{index}.{name.removeprefix(f'model.{layer}.')}": tensor
                for name, tensor in state.items()
                if name.startswith(f"model.{layer}.")
            }
        plain.load_state_dict(own)
        found = plain(inputs_embeds=model.model.embed_tokens(steps).sum(2)).logits
        assert torch.allclose(logits[:, :, stream], found, atol=1e-5)


@torch.no_grad()
def test_what_an_encoder_heard_is_added_to_its_codes(model):
    """The released code: (embedding + adaptor(features)) · √2 where there are features, else the embedding."""
    ids, features = torch.randint(0, len(KINDS), (2, 12)), torch.randn(3, 12)
    places = torch.tensor([1, 2, 10])  # of 2 · 6 steps
    text, speech = model.model.embed_tokens(ids).view(12, 2, -1).unbind(1)
    wanted = text + speech
    wanted[places] = text[places] + (speech[places] + model.model.vq_adaptor(features)) * 2**0.5
    assert torch.allclose(model.model.embed(ids, (places, features)).view(12, -1), wanted, atol=1e-6)
    plain, heard = model(ids).logits, model(ids, heard=(places, features)).logits
    assert torch.equal(plain[0, :2], heard[0, :2])
    assert (plain[0, 2:] - heard[0, 2:]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("pad", [None, 0], ids=["packed", "padded"])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_token_is_scored_by_its_own_output_layer(model, pad, parts):
    wanted = [expected(model, one) for one in ROWS]
    if pad is None:
        use_packing(model)
    batch = collate(ROWS, routes=1, temperature=1.0, device=torch.device("cpu"), pad=pad, streams=2)
    if pad is None:
        assert batch.input_ids.shape == (1, sum(map(len, ROWS)) - 10), "the shared prompt lies there once"
    logps, entropies = PolicyModel(model, KINDS)(**batch.policy_inputs(), num_chunks=parts)
    dense = batch.dense(logps)
    for index, found in enumerate(wanted):
        assert torch.allclose(dense[index, : len(found)], found, atol=1e-5)
    assert entropies.min() > 0


@torch.no_grad()
def test_some_tokens_of_some_rows(model):
    """Tokens without a loss are not scored, and the anchor's rows are not compared with the reference model."""
    use_packing(model)
    shown = row(2, 3, 9, said=3, anchor_weight=1.0)
    rows, scorer = [shown, *ROWS], PolicyModel(model, KINDS)

    def scored(_, one: TrainingSample) -> np.ndarray:
        return one.channels == (1 if one.anchor_weight else 0)

    batch = collate(rows, routes=1, temperature=1.0, device=torch.device("cpu"), scored=scored, streams=2)
    logps, _ = scorer(**batch.policy_inputs())
    wanted = torch.cat([expected(model, one)[0::2] for one in ROWS] + [expected(model, shown)[1::2]])
    assert torch.allclose(logps, wanted, atol=1e-5)
    compared, _ = scorer(**batch.reference_inputs())
    assert torch.allclose(compared, wanted[: len(compared)], atol=1e-5)
    assert len(compared) == sum(len(one.reply_ids) // 2 for one in ROWS)
    passages = [GradientBatch(prompt_ids=one.prompt_ids, reply_ids=one.reply_ids) for one in ROWS]
    for one, found in zip(ROWS, log_probabilities(scorer, passages), strict=True):
        assert np.allclose(found, expected(model, one), atol=1e-5)


@torch.no_grad()
def test_what_the_structure_leaves_no_choice_about_is_certain(model):
    """With one allowed token, the log-probability is exactly 0."""
    sets = np.tile([int(TokenKind.TEXT | TokenKind.END_TEXT), int(TokenKind.FILLER)], 4).astype(np.int8)
    one = row(2, 4, 5, allowed=sets)
    one.reply_ids[1::2] = 30
    batch = collate([one], routes=1, temperature=0.7, device=torch.device("cpu"), streams=2, pad=0)
    logps, entropies = PolicyModel(model, KINDS)(**batch.policy_inputs())
    assert torch.equal(logps[1::2], torch.zeros(4))
    assert torch.equal(entropies[1::2], torch.zeros(4))
    assert entropies[0::2].min() > 0


def test_a_loss_on_text_leaves_the_speech_branch_alone(model):
    use_packing(model)
    assert enable_gradient_checkpointing(model) == 5
    scorer = PolicyModel(model, KINDS)

    def gradients(stream: int) -> dict[str, float]:
        batch = collate(
            ROWS, routes=1, temperature=1.0, device=torch.device("cpu"), streams=2,
            scored=lambda _, one: one.channels == stream,
        )  # fmt: skip
        scorer.zero_grad(set_to_none=False)
        scorer(**batch.policy_inputs())[0].sum().backward()
        named = dict(model.named_parameters())
        return {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in named.items()}

    text, speech = gradients(0), gradients(1)
    branch = {name for name in text if "mimo" in name}
    assert len(branch) == 2 * 12 + 2
    assert {name for name in branch if text[name]} == set()
    assert text["lm_head.weight"] > 0
    assert speech["lm_head.weight"] == speech["model.layers.2.mlp.up_proj.weight"] == 0
    assert min(speech[name] for name in branch if "k_proj.bias" not in name) > 0
    assert speech["model.layers.0.mlp.up_proj.weight"] > 0


def test_half_a_step_is_rejected():
    broken = row(2, 2, 1)
    with pytest.raises(ValueError, match="2 tokens for each step"):
        collate(
            [TrainingSample(prompt_ids=broken.prompt_ids[1:], reply_ids=broken.reply_ids, channels=broken.channels)],
            routes=1,
            temperature=1.0,
            device=torch.device("cpu"),
            streams=2,
        )
