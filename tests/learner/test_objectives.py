"""The losses against the authors' numbers."""

import numpy as np
import pytest
import torch

from controller.batch import token_weights
from learner.losses import dpo_loss, grpo_loss, kl_k3, sft_loss
from reward.scoring import advantages
from speech.vocabulary import Channel, select

BEGIN, END, SPEECH_FIRST = 38, 39, 40
CLIP = {"clip": 0.2, "clip_high": 0.2, "cap": 2.0}


def channels_of(ids: np.ndarray, counts: np.ndarray) -> torch.Tensor:
    """int8 like ids; -1 where counts is 0."""
    channels = np.where(ids >= SPEECH_FIRST, Channel.SPEECH, Channel.TEXT).astype(np.int8)
    channels[(ids == BEGIN) | (ids == END)] = Channel.BOUNDARY
    channels[counts == 0] = -1
    return torch.from_numpy(channels)


def keyed(cases: list) -> list:
    return [(case, key, expected) for case in cases for key, expected in case["expected"].items()]


@pytest.mark.reference
def test_preference_equals_the_authors_numbers(reference):
    for case, key, expected in keyed(reference("losses.json")):
        selection, boundary = key.split("/boundary_")
        start, size = case["prompt_length"], case["group_size"]
        ids = np.asarray(case["sequences"])[:, start:]
        mask = select(channels_of(ids, np.asarray(case["completion_mask"])), selection, boundary=boundary)
        logp = torch.tensor(case["policy_logp"], requires_grad=True)
        scores = np.asarray(case["scores"]).reshape(-1, size)
        advantage = torch.tensor(np.concatenate([advantages(group) for group in scores]), dtype=torch.float32)
        counts = mask.sum(-1).reshape(-1, size).tolist()
        weights = torch.tensor(token_weights(counts, "seq-mean-token-mean", 0)).reshape(-1)
        reply = logp[:, start - 1 :]
        terms, _ = grpo_loss(reply, reply.detach(), reply.detach(), advantage, **CLIP, ratio="none")
        loss = (weights[:, None] * terms * mask).sum()
        loss.backward()
        assert loss.item() == pytest.approx(expected["rl_loss_no_ref"], abs=1e-5), key
        assert logp.grad.abs().sum().item() == pytest.approx(expected["rl_grad_sum_abs"], abs=1e-5), key
        assert logp.grad.sum(-1).tolist() == pytest.approx(expected["rl_grad_rowsum"], abs=1e-5), key


@pytest.mark.reference
def test_anchor_equals_the_authors_numbers(reference):
    for case, key, expected in keyed(reference("losses.json")):
        selection, boundary = key.split("/boundary_")
        labels = torch.tensor(case["labels"])[:, 1:]
        logits = torch.tensor(case["logits"], requires_grad=True)
        logp = torch.log_softmax(logits[:, :-1], -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        channels = channels_of(labels.numpy(), (labels != -100).numpy())
        text, speech = (select(channels, name, boundary=boundary) for name in ("text", "speech"))
        loss = sft_loss(
            logp, text, speech, weight_text=float(selection != "speech"), weight_speech=float(selection != "text")
        ).mean()
        loss.backward()
        assert loss.item() == pytest.approx(expected["sft_loss"], abs=1e-5), key
        assert logits.grad.abs().sum().item() == pytest.approx(expected["sft_grad_abs"], abs=1e-4), key


@pytest.mark.parametrize(
    ("selection", "boundary", "chosen"),
    [
        ("text", "speech", [1, 0, 0, 0, 1, 0]),
        ("text", "text", [1, 1, 0, 1, 1, 0]),
        ("speech", "speech", [0, 1, 1, 1, 0, 0]),
        ("speech", "text", [0, 0, 1, 0, 0, 0]),
        ("format", "speech", [0, 1, 0, 1, 1, 0]),
        ("words", "text", [1, 0, 0, 0, 0, 0]),
        ("codes", "speech", [0, 0, 1, 0, 0, 0]),
        ("all", "speech", [1, 1, 1, 1, 1, 0]),
    ],
)
def test_selections(selection, boundary, chosen):
    channels = np.array([0, 2, 1, 2, 3, -1], dtype=np.int8)
    for kind in (channels, torch.from_numpy(channels)):
        assert select(kind, selection, boundary=boundary).tolist() == [bool(c) for c in chosen]
    with pytest.raises(ValueError, match="unknown token selection 'both'"):
        select(channels, "both")


def test_clipping_stops_the_gradient_only_where_the_ratio_went_too_far():
    logp = torch.tensor([[0.5, -0.5], [0.5, -0.5]], requires_grad=True)
    zero = torch.zeros(2, 2)
    loss, bound = grpo_loss(logp, zero, zero + 9.0, torch.tensor([1.0, -1.0]), **CLIP, ratio="rollout")
    loss.sum().backward()
    assert bound.tolist() == [[True, False], [False, True]]
    assert (logp.grad != 0).tolist() == [[False, True], [True, False]]


def test_k3_is_never_negative_and_zero_where_policies_agree():
    logp = torch.linspace(-3, 0, 7)
    assert torch.all(kl_k3(logp, torch.full((7,), -1.5)) >= 0)
    assert torch.all(kl_k3(logp, logp) == 0)


def test_an_importance_weight_is_bounded_token_by_token():
    """A product over the reply would be exp(4.5); here no token counts more than twice."""
    old = torch.zeros(1, 3)
    sampler = torch.tensor([[-3.0, -0.5, -1.0]])
    logp = old.clone().requires_grad_(True)
    loss, bound = grpo_loss(logp, sampler, old, torch.tensor([1.0]), **CLIP, ratio="truncated")
    loss.sum().backward()
    assert logp.grad.tolist()[0] == pytest.approx([-2.0, -np.exp(0.5), -2.0])
    assert bound.tolist() == [[True, False, True]]


def test_ratio_one_does_not_see_who_sampled():
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, bound = grpo_loss(logp, torch.tensor([[-9.0, 0.0]]), logp.detach(), torch.tensor([3.0]), **CLIP, ratio="none")
    loss.sum().backward()
    assert logp.grad.tolist() == [[-3.0, -3.0]]
    assert not bound.any()


def test_dpo_against_the_formula():
    """Method §5 by hand: −log σ(0.2 · ((−3 + 5) − (−4 + 4.5)))."""
    chosen, rejected, ref_chosen, ref_rejected = (torch.tensor([v]) for v in (-3.0, -5.0, -4.0, -4.5))
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.2)
    assert loss.item() == pytest.approx(-np.log(1 / (1 + np.exp(-0.2 * 1.5))), abs=1e-6)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        # two groups count (the last has no token): 1 / (2 groups · 2 replies · tokens)
        ("seq-mean-token-mean", [[1 / 8, 1 / 24], [0.0, 1 / 4], [0.0]]),
        ("token-mean", [[1 / 9, 1 / 9], [0.0, 1 / 9], [0.0]]),
        ("seq-mean-token-sum-norm", [[1 / 40, 1 / 40], [0.0, 1 / 40], [0.0]]),
    ],
)
def test_averages(average, expected):
    """Method §7, rule 4 among others: a group without a selected token does not count."""
    found = token_weights([[2, 6], [0, 1], [0]], average, 10)
    assert found == [pytest.approx(group) for group in expected]
