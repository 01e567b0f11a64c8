"""Norms and inner products of gradients, compared with plain backward passes of the same model."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from evaluation.diagnosis import gradient_geometry
from evaluation.diagnosis.gradient_geometry import GradientBatch, layer_of, log_probabilities, measure_geometry
from learner.policy import PolicyModel
from speech.grammar import TokenKind

KINDS = torch.tensor(
    [0] + [TokenKind.TEXT] * 9 + [TokenKind.SPEECH] * 20 + [TokenKind.BEGIN, TokenKind.END, TokenKind.STOP],
    dtype=torch.int8,
)
LAYERS = ("embedding", "layers.0", "layers.1", "final norm", "lm_head")


def build(*, tied: bool) -> PolicyModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(KINDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return PolicyModel(Qwen2ForCausalLM(config).float().eval(), KINDS)


@pytest.fixture(scope="module")
def scorer() -> PolicyModel:
    return build(tied=False)


def passage(prompt: int, reply: int, seed: int, *, constrained: bool) -> GradientBatch:
    """Alternate text and speech tokens."""
    rng = np.random.default_rng(seed)
    ids = np.where(np.arange(reply) % 2 == 0, rng.integers(1, 10, reply), rng.integers(10, 30, reply))
    return GradientBatch(
        prompt_ids=rng.integers(1, 30, prompt).astype(np.int32),
        reply_ids=ids.astype(np.int32),
        temperature=0.8,
        allowed=KINDS.numpy()[ids] | np.int8(TokenKind.STOP) if constrained else None,
    )


@pytest.fixture(scope="module")
def passages() -> list[GradientBatch]:
    return [
        passage(prompt, reply, seed, constrained=seed % 2 == 0)
        for seed, (prompt, reply) in enumerate([(5, 9), (11, 3), (2, 12), (7, 6)])
    ]


@pytest.fixture(scope="module")
def weights(passages) -> dict[str, list[np.ndarray]]:
    """Text has weights at even positions, speech at odd ones. The last passage has no speech weights."""
    rng = np.random.default_rng(7)
    text = [rng.normal(size=len(p.reply_ids)) * (np.arange(len(p.reply_ids)) % 2 == 0) for p in passages]
    speech = [rng.normal(size=len(p.reply_ids)) * (np.arange(len(p.reply_ids)) % 2 == 1) for p in passages]
    speech[-1] = np.zeros(len(passages[-1].reply_ids))
    return {"text": text, "speech": speech}


def plain_logps(scorer: PolicyModel, one: GradientBatch) -> torch.Tensor:
    """Return log-probabilities [T] from the whole model, one token at a time."""
    ids = torch.from_numpy(np.concatenate([one.prompt_ids, one.reply_ids]).astype(np.int64))
    logits = scorer.model(ids[None]).logits[0, len(one.prompt_ids) - 1 : -1] / one.temperature
    if one.allowed is not None:
        out = (KINDS[None, :] & torch.from_numpy(one.allowed)[:, None]) == 0
        logits = logits.masked_fill(out, float("-inf"))
    return torch.log_softmax(logits, -1)[torch.arange(len(one.reply_ids)), ids[len(one.prompt_ids) :]]


def plain_gradient(
    scorer: PolicyModel, passages: list[GradientBatch], weights: list[np.ndarray]
) -> dict[str, torch.Tensor]:
    scorer.zero_grad()
    for one, weight in zip(passages, weights, strict=True):
        (-(torch.from_numpy(weight).float() * plain_logps(scorer, one)).sum()).backward()
    found = {name: p.grad.clone() for name, p in scorer.model.named_parameters()}
    scorer.zero_grad()
    return found


def of_layer(gradient: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    """Parameter names of this model, written out."""
    starts = {"embedding": "model.embed_tokens.", "final norm": "model.norm.", "lm_head": "lm_head."}
    return torch.cat(
        [g.flatten() for name, g in gradient.items() if name.startswith(starts.get(layer, f"model.{layer}."))]
    )


def test_norms_and_cosines_are_those_of_plain_backward_passes(scorer, passages, weights):
    found = measure_geometry(scorer, passages, weights)
    text, speech = (plain_gradient(scorer, passages, weights[name]) for name in ("text", "speech"))
    assert found.layers == LAYERS
    for layer in LAYERS:
        one, other = of_layer(text, layer), of_layer(speech, layer)
        assert found.norm("text", layer) == pytest.approx(one.norm().item(), rel=1e-4)
        assert found.norm("speech", layer) == pytest.approx(other.norm().item(), rel=1e-4)
        cosine = torch.cosine_similarity(one, other, dim=0).item()
        assert found.cosine("text", "speech", layer) == pytest.approx(cosine, abs=1e-4)
    terms = [torch.from_numpy(w) * plain_logps(scorer, p) for p, w in zip(passages, weights["text"], strict=True)]
    assert found.values[0] == pytest.approx(-torch.cat(terms).sum().item(), rel=1e-4)


def test_squared_norms_of_the_layers_add_up(scorer, passages, weights):
    found = measure_geometry(scorer, passages, weights)
    whole = torch.cat([g.flatten() for g in plain_gradient(scorer, passages, weights["text"]).values()]).norm().item()
    assert found.norm("text") == pytest.approx(whole, rel=1e-4)
    assert sum(found.norm("text", layer) ** 2 for layer in found.layers) == pytest.approx(found.norm("text") ** 2)


def test_text_and_speech_add_up_to_the_gradient_of_the_summed_loss(scorer, passages, weights):
    both = [text + speech for text, speech in zip(weights["text"], weights["speech"], strict=True)]
    found = measure_geometry(scorer, passages, weights | {"both": both})
    summed = found.summed({"sum": ["text", "speech"], "both": ["both"]})
    for layer in (None, *found.layers):
        assert summed.norm("sum", layer) == pytest.approx(summed.norm("both", layer), rel=1e-4)
        assert summed.cosine("sum", "both", layer) == pytest.approx(1.0, abs=1e-5)
    assert summed.values[0] == pytest.approx(summed.values[1], rel=1e-4)


def test_micro_batches_are_bounded_and_change_nothing(scorer, passages, weights, monkeypatch):
    whole, logps = measure_geometry(scorer, passages, weights), log_probabilities(scorer, passages)
    seen: list[tuple[int, int]] = []
    forward = scorer.forward
    monkeypatch.setattr(
        scorer, "forward", lambda *a, **k: seen.append((a[0].numel(), a[1].numel())) or forward(*a, **k)
    )
    monkeypatch.setattr(gradient_geometry, "POSITIONS", 28)
    monkeypatch.setattr(gradient_geometry, "LOGITS", 15 * len(KINDS))
    split = measure_geometry(scorer, passages, weights)
    again = log_probabilities(scorer, passages)
    assert len(seen) > 4
    assert max(positions for positions, _ in seen) <= 28
    assert max(tokens for _, tokens in seen) <= 15
    np.testing.assert_allclose(split.products, whole.products, rtol=1e-3, atol=1e-7)
    for one, other in zip(logps, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_log_probabilities_come_in_the_order_of_the_passages(scorer, passages):
    for one, found in zip(passages, log_probabilities(scorer, passages), strict=True):
        np.testing.assert_allclose(found, plain_logps(scorer, one).detach().numpy(), atol=1e-5)


def test_tokens_that_no_loss_weighs_never_reach_the_output_layer(scorer, passages, weights):
    """Method §7, rule 8."""
    seen: list[int] = []
    hook = scorer.model.lm_head.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[0]))
    try:
        measure_geometry(scorer, passages, {"text": weights["text"]})
    finally:
        hook.remove()
    assert sum(seen) == sum(np.count_nonzero(weight) for weight in weights["text"])


def test_a_loss_without_weights_has_no_direction(scorer, passages, weights):
    nothing = [np.zeros(len(p.reply_ids)) for p in passages]
    found = measure_geometry(scorer, passages, {"text": weights["text"], "nothing": nothing})
    assert found.norm("nothing") == 0.0
    assert found.cosine("text", "nothing") is None
    assert found.norm("text") == pytest.approx(measure_geometry(scorer, passages, weights).norm("text"), rel=1e-4)


def test_frozen_parameters_have_no_gradient(passages, weights):
    scorer = build(tied=False)
    scorer.model.model.embed_tokens.requires_grad_(False)
    assert measure_geometry(scorer, passages, weights).layers == LAYERS[1:]


def test_tied_embedding_is_one_layer(passages, weights):
    scorer = build(tied=True)
    found = measure_geometry(scorer, passages, weights)
    assert found.layers == ("embedding and lm_head", "layers.0", "layers.1", "final norm")
    embedding = plain_gradient(scorer, passages, weights["text"])["model.embed_tokens.weight"]
    assert found.norm("text", "embedding and lm_head") == pytest.approx(embedding.norm().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "layers.11"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "layers.3"),
        ("model.language_model.norm.weight", "final norm"),
        ("model.audio_tower.layers.3.fc1.weight", "other"),
        ("lm_head.weight", "lm_head"),
        ("model.embed_tokens.weight", "embedding"),
    ],
)
def test_layers_are_found_by_name(name, layer):
    assert layer_of(name) == layer
