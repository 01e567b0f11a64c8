"""Packed rows give the losses and gradients of padded ones; a model that mixes rows is rejected."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from common.errors import InputError
from learner import packed_attention, policy
from learner.collate import collate
from learner.config import PairLoss
from learner.losses import micro_batch_loss
from learner.micro_batches import Item, TrainingPair, TrainingSample, micro_batches, split, tokens_of
from learner.packed_attention import PackedLayout, Packing, use_packing
from learner.policy import PolicyModel
from learner.setup import enable_gradient_checkpointing
from tests.learner.examples import OBJECTIVE
from tests.learner.test_policy import KINDS

CPU = torch.device("cpu")
PAIRED = replace(OBJECTIVE, pairs=PairLoss(channel="all", beta=0.1))


def a_model(**settings) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(KINDS), hidden_size=32, intermediate_size=64, num_hidden_layers=3)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    return Qwen2ForCausalLM(Qwen2Config(**(sizes | heads | dict(tie_word_embeddings=False) | settings))).float().eval()


def items(longest: int = 40) -> list[Item]:
    """Return sampled replies, demonstrations and a pair of varied lengths. Three rows share a prompt."""
    rng = np.random.default_rng(3)

    def row(**fields) -> TrainingSample:
        prompt, reply = int(rng.integers(1, 9)), int(rng.integers(2, longest))
        return TrainingSample(
            prompt_ids=rng.integers(1, 30, prompt).astype(np.int32),
            reply_ids=rng.integers(1, 30, reply).astype(np.int32),
            channels=rng.integers(0, 3, reply).astype(np.int8),
            **fields,
        )

    def sampled() -> TrainingSample:
        found = row(advantages=(float(rng.normal()),), weights=(0.02,), kl_weights=(0.01, 0.02))
        return replace(found, rollout_logprobs=rng.normal(-3, 0.1, len(found.reply_ids)).astype(np.float32))

    def unweighed() -> TrainingSample:
        return row(advantages=(0.0,), weights=(0.0,))

    rows: list[Item] = [row(anchor_weight=0.5), sampled(), sampled(), row(anchor_weight=0.5), sampled()]
    chosen = unweighed()
    pair = TrainingPair(chosen=chosen, rejected=replace(unweighed(), prompt_ids=chosen.prompt_ids), weight=1.0)
    prompt = np.arange(3, 20, dtype=np.int32)
    return [*rows, pair, *(replace(one, prompt_ids=prompt) for one in (sampled(), row(anchor_weight=0.5), sampled()))]


def gradients(model: PolicyModel, parts: list[list[Item]], pad: int | None) -> tuple[float, list[torch.Tensor]]:
    """Return the loss and gradients of a step in micro-batches. The reference model is the model itself."""
    model.zero_grad()
    total = 0.0
    for part in parts:
        batch = collate(part, routes=1, temperature=0.7, device=CPU, pad=pad)
        logp, entropy = model(**batch.policy_inputs())
        with torch.no_grad():
            compared, _ = model(**batch.reference_inputs())
        start = torch.zeros(len(batch.targets))
        start[: len(compared)] = compared - 0.1
        loss, _ = micro_batch_loss(batch, logp, entropy, start, PAIRED, 0.4)
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in model.parameters()]


def close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all((a - b).abs().max() <= 1e-5 * (1 + b.abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("settings", [{}, {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}])
@pytest.mark.parametrize("count", [1, 3])
def test_a_packed_step_is_that_of_padded_rows(settings, count):
    """transformers' own attention with padding against packed attention, in one micro-batch and in three."""
    given = items()
    plain, packed = (PolicyModel(a_model(**settings), KINDS) for _ in range(2))
    use_packing(packed.model)
    expected, slopes = gradients(plain, [given], 0)
    loss, found = gradients(packed, split(given, count), None)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert max(slope.abs().max() for slope in slopes) > 0.01
    assert close(found, slopes)


def test_nothing_is_computed_for_padding_nor_a_prompt_twice():
    given = items()
    batch = collate(given, routes=1, temperature=1.0, device=CPU)
    twice = 2 * 17 + len(given[5].rows[1].prompt_ids)
    assert batch.input_ids.shape == (1, sum(map(len, given)) - twice)
    assert tokens_of(given) == batch.input_ids.numel()


def test_a_row_sees_no_other():
    model = a_model()
    use_packing(model)
    ids = torch.arange(1, 13)[None]
    packing = Packing.from_layout(PackedLayout.from_rows(["a", "b", "b"], [(3, 2), (2, 1), (2, 4)]), CPU)
    assert packing.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 2, 3, 4, 5]]

    def seen(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.model(input_ids=ids, position_ids=packing.positions, packing=packing)[0][0]

    def same(place: int) -> list[bool]:
        changed = ids.clone()
        changed[0, place] = 20
        return (seen(ids) == seen(changed)).all(-1).tolist()

    assert same(2) == [True] * 2 + [False] * 3 + [True] * 7
    assert same(6) == [True] * 6 + [False] * 6, "their prompt"
    assert same(7) == [True] * 7 + [False] + [True] * 4, "the reply of one"
    assert same(9) == [True] * 9 + [False] * 3


def test_a_model_that_mixes_rows_is_refused(monkeypatch):
    def leak(*given, packing, **named):
        return packed_attention.attend(*given, **named)

    monkeypatch.setitem(packed_attention.AttentionInterface._global_mapping, packed_attention.PACKED, leak)
    with pytest.raises(InputError, match=r"learner.sequence_packing: Qwen2ForCausalLM .* tokens attend to other rows"):
        use_packing(a_model())


def test_a_model_that_takes_other_positions_is_refused(monkeypatch):
    """All positions are 0. A shift would not matter, because rotary positions are relative."""
    of = Packing.from_layout
    monkeypatch.setattr(Packing, "from_layout", lambda *given: _at_zero(of(*given)))
    with pytest.raises(
        InputError, match=r"outputs differ from those of each row alone.*learner.sequence_packing=false"
    ):
        use_packing(a_model())


def _at_zero(packing: Packing) -> Packing:
    return replace(packing, positions=torch.zeros_like(packing.positions))


def test_a_model_with_an_attention_of_its_own_is_refused():
    class Own(nn.Module):
        config = a_model().config

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(InputError, match=r"its attention cannot be replaced .*; set learner.sequence_packing=false"):
        use_packing(Own())


def test_the_output_layer_in_parts_gives_the_same(monkeypatch):
    model = PolicyModel(a_model(), KINDS)
    use_packing(model.model)
    whole = gradients(model, [items()], None)
    seen: list[int] = []
    model.model.lm_head.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    monkeypatch.setattr(policy, "MAX_LOGITS", 7 * len(KINDS))
    assert (model.num_chunks(0), model.num_chunks(7), model.num_chunks(8)) == (1, 1, 2)
    parts = gradients(model, [items()], None)
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    assert close(parts[1], whole[1])
    assert max(seen) <= 7


@pytest.mark.parametrize("packed", [True, False])
def test_layers_that_are_computed_again_keep_less_and_give_the_same(packed):
    def run(model: PolicyModel) -> tuple[list[torch.Tensor], int]:
        held: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = collate(items(), routes=1, temperature=1.0, device=CPU, pad=None if packed else 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logps, _ = model(**batch.policy_inputs())
        (-logps.sum()).backward()
        return [p.grad for p in model.parameters()], sum(held.values())

    plain, again = (PolicyModel(a_model(num_hidden_layers=6, attention_dropout=0.5), KINDS) for _ in range(2))
    for one in (plain, again):
        use_packing(one.model)
    assert enable_gradient_checkpointing(again.model) == 6
    (slopes, all_of_it), (found, less) = run(plain), run(again)
    assert all(torch.equal(a, b) for a, b in zip(found, slopes, strict=True))
    assert less < 0.4 * all_of_it


def test_dropout_that_a_layer_does_itself_stays_off():
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=16, ffn_dim=32, word_embed_proj_dim=16)
    model = OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, dropout=0.5)).eval()
    ids = torch.arange(1, 9)[None]
    before = model(ids).logits
    enable_gradient_checkpointing(model)
    assert torch.equal(model(ids).logits, before)


def test_only_layers_that_can_be_are_computed_again():
    with pytest.raises(InputError, match=r"learner.gradient_checkpointing: Linear has no layers"):
        enable_gradient_checkpointing(nn.Linear(2, 2))


NAMES = itertools.count()


def row_of(length: int) -> TrainingSample:
    """Return a row with its own prompt."""
    ids = np.ones(length - 1, dtype=np.int32)
    return TrainingSample(
        prompt_ids=np.array([next(NAMES)], np.int32), reply_ids=ids, channels=np.zeros(length - 1, dtype=np.int8)
    )


def test_parts_have_about_as_many_tokens():
    rng = np.random.default_rng(0)
    rows = [row_of(int(length)) for length in rng.gamma(2.0, 60.0, 200).clip(4)]
    parts = split(rows, 7)
    loads = [tokens_of(part) for part in parts]
    assert sorted(len(r) for part in parts for r in part) == sorted(map(len, rows))
    assert max(loads) / min(loads) < 1.01
    assert all(split([row_of(2)] * 3 + [row_of(900)], 4))


@pytest.mark.parametrize(("parts", "apart"), [(2, 0), (4, 0), (8, 16)])
def test_replies_to_a_prompt_stay_together_as_far_as_parts_come_out_even(parts, apart):
    rng = np.random.default_rng(0)
    groups = [
        [replace(row_of(int(n)), prompt_ids=np.full(40, i, np.int32)) for n in rng.integers(20, 90, 8)]
        for i in range(16)
    ]
    dealt = split([row for group in groups for row in group], parts)
    loads = [tokens_of(part) for part in dealt]
    assert max(loads) / min(loads) < 1.1
    places = [{int(row.prompt_ids[0]) for row in part} for part in dealt]
    assert sum(len(place) for place in places) - 16 <= apart


@pytest.mark.parametrize(
    ("lengths", "tokens", "count"),
    [
        ([[10, 10, 10]], 100, 1),
        ([[10, 10, 10]], 20, 2),
        ([[10, 10, 10], [10, 10, 10, 30]], 30, 2),
        ([[6, 6, 6]], 10, 3),
        ([[200, 10, 10]], 50, 2),
        ([[10] * 8, [10, 10]], 10, 2),
    ],
)
def test_micro_batches_are_within_their_tokens_and_as_many_on_every_rank(lengths, tokens, count):
    """No rank is left without items, although others then exceed the limit."""
    shares = [[row_of(length) for length in share] for share in lengths]
    assert micro_batches(shares, tokens, packing=True) == count


def test_a_long_prompt_with_many_replies_is_not_laid_out_at_once():
    """By its tokens it would be one micro-batch: 600 of the prompt and 12 of each reply."""
    rows = [replace(row_of(13), prompt_ids=np.arange(600, dtype=np.int32)) for _ in range(60)]
    assert tokens_of(rows) < 2000
    assert micro_batches([rows], 2000, packing=True) >= 60 * 612 / (4 * 2000)
    assert micro_batches([rows[:10]], 2000, packing=True) == 1


def test_padding_counts_where_rows_are_padded():
    rows = [row_of(500), *(row_of(20) for _ in range(60))]
    assert micro_batches([rows], 2000, packing=True) > 1, "61 rows of 500 cells"
    count = micro_batches([rows], 2000, packing=False)
    assert all(len(part) * max(map(len, part)) <= 2000 for part in split(rows, count))
