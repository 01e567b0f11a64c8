"""The policy model against a plain forward pass of the same model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.collate import collate
from learner.micro_batches import TrainingPair, TrainingSample, split
from learner.policy import PolicyModel
from speech.grammar import TokenKind
from weight_sync.source import named_weights

KINDS = torch.tensor(
    [0] + [TokenKind.TEXT] * 9 + [TokenKind.SPEECH] * 20 + [TokenKind.BEGIN, TokenKind.END, TokenKind.STOP],
    dtype=torch.int8,
)


@pytest.fixture(scope="module")
def scorer() -> PolicyModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(KINDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return PolicyModel(Qwen2ForCausalLM(config).float().eval(), KINDS)


def row(prompt: int, reply: int, seed: int) -> TrainingSample:
    rng = np.random.default_rng(seed)
    return TrainingSample(
        prompt_ids=rng.integers(1, 30, prompt).astype(np.int32),
        reply_ids=rng.integers(1, 30, reply).astype(np.int32),
        channels=np.zeros(reply, dtype=np.int8),
        rollout_logprobs=np.zeros(reply, dtype=np.float32),
        advantages=(1.0,),
        weights=(1.0,),
    )


def test_padded_batch_equals_each_row_alone(scorer):
    """Method §7, rule 3: the sampler's temperature is the learner's."""
    rows = [row(5, 9, 1), row(11, 3, 2), row(2, 12, 3)]
    batch = collate(rows, pad=0, routes=1, temperature=0.7, device=torch.device("cpu"))
    with torch.no_grad():
        logp, entropy = scorer(batch.input_ids, batch.sources, batch.targets, batch.allowed, batch.temperatures)
        dense, dense_entropy = batch.dense(logp), batch.dense(entropy)
        for index, one in enumerate(rows):
            ids = torch.from_numpy(np.concatenate([one.prompt_ids, one.reply_ids]).astype(np.int64))
            plain = torch.log_softmax(scorer.model(ids[None]).logits[0] / 0.7, -1)[len(one.prompt_ids) - 1 : -1]
            expected = plain.gather(-1, ids[len(one.prompt_ids) :, None])[:, 0]
            assert torch.allclose(dense[index, : len(expected)], expected, atol=1e-5)
            assert torch.all(dense[index, len(expected) :] == 0)
            assert torch.allclose(dense_entropy[index, : len(expected)], -(plain.exp() * plain).sum(-1), atol=1e-5)


def test_what_the_structure_forbids_has_no_probability(scorer):
    """Method §7, rule 3: it had none for the sampler either."""
    ids = torch.tensor([[1, 2, 3]])
    allowed = torch.tensor([int(TokenKind.TEXT | TokenKind.BEGIN)])
    with torch.no_grad():
        scores = [
            scorer(ids, torch.tensor([2]), torch.tensor([target]), allowed, torch.ones(1))[0].item()
            for target in range(len(KINDS))
        ]
    possible = [KINDS[target].item() in (TokenKind.TEXT, TokenKind.BEGIN) for target in range(len(KINDS))]
    assert [np.isfinite(score) for score in scores] == possible
    assert np.exp([s for s, ok in zip(scores, possible, strict=True) if ok]).sum() == pytest.approx(1.0, abs=1e-5)


def test_replies_are_scored_as_they_were_sampled_and_demonstrations_freely():
    """Method §7, rule 3: temperature and mask go with the row, in pairs as well."""
    allowed = np.array([1, 5, 2], dtype=np.int8)
    drawn = [replace(row(2, 3, seed), allowed=allowed + np.int8(seed)) for seed in range(3)]
    shown = replace(row(4, 2, 3), rollout_logprobs=None, anchor_weight=1.0)
    items = [drawn[0], shown, TrainingPair(chosen=drawn[1], rejected=drawn[2], weight=1.0)]
    batch = collate(items, pad=0, routes=1, temperature=0.7, device=torch.device("cpu"))
    assert batch.temperatures.tolist() == pytest.approx([0.7] * 9 + [1.0] * 2)
    assert batch.allowed.tolist() == [1, 5, 2, 2, 6, 3, 3, 7, 4, 0, 0], "demonstrations come last"


def test_the_output_layer_sees_reply_tokens_only(scorer):
    """Method §7, rule 8: one row per reply token; none predicts a prompt token or padding."""
    rows = [row(5, 9, 1), row(11, 3, 2), row(2, 12, 3)]
    batch = collate(rows, pad=0, routes=1, temperature=0.7, device=torch.device("cpu"))
    seen: dict[str, list[torch.Tensor]] = {"body": [], "head": []}
    hooks = [
        scorer.model.model.register_forward_hook(lambda _, __, found: seen["body"].append(found.last_hidden_state)),
        scorer.model.lm_head.register_forward_hook(lambda _, given, __: seen["head"].append(given[0])),
    ]
    try:
        with torch.no_grad():
            scorer(batch.input_ids, batch.sources, batch.targets, batch.allowed, batch.temperatures)
    finally:
        for hook in hooks:
            hook.remove()
    [hidden], [given] = seen["body"], seen["head"]
    assert given.shape == (9 + 3 + 12, hidden.shape[-1])
    expected = [hidden[index, len(r.prompt_ids) - 1 : len(r) - 1] for index, r in enumerate(rows)]
    assert torch.equal(given, torch.cat(expected))


def test_tied_output_layer_is_named(scorer):
    """An engine that does not receive `lm_head.weight` silently keeps its old one."""
    names = [name for name, _ in named_weights(scorer.model)]
    assert "lm_head.weight" in names
    assert "model.embed_tokens.weight" in names
    assert len(names) == len(set(names))


def test_split_deals_evenly():
    rows = [row(3, length, length) for length in range(1, 12)]
    parts = split(rows, 3)
    assert sorted(len(part) for part in parts) == [3, 4, 4]
    assert sorted(len(r) for part in parts for r in part) == sorted(map(len, rows))
