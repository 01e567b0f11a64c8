"""The losses against the authors' numbers, and the parts against the whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from controller.statistics import advantages
from learner.objectives import anchor_loss, kl_estimate, policy_loss
from learner.rows import Row, collate
from learner.step import micro_batch_loss
from speech.channels import Channel, select
from tests.learner.examples import OBJECTIVE as PLAIN

BEGIN, END, SPEECH_FIRST = 38, 39, 40


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
        weights = 1.0 / len(ids)  # the groups are of equal size
        reply = logp[:, start - 1 :]
        rows, _ = policy_loss(reply, reply.detach(), advantage, mask, clip=0.2, ratio="one")
        loss = weights * rows.sum()
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
        loss = anchor_loss(
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
        ("all", "speech", [1, 1, 1, 1, 1, 0]),
    ],
)
def test_selections(selection, boundary, chosen):
    channels = np.array([0, 2, 1, 2, 0, -1], dtype=np.int8)
    for kind in (channels, torch.from_numpy(channels)):
        assert select(kind, selection, boundary=boundary).tolist() == [bool(c) for c in chosen]
    with pytest.raises(ValueError, match="unknown token selection 'both'"):
        select(channels, "both")


def test_clipping_stops_the_gradient_only_where_the_ratio_went_too_far():
    logp = torch.tensor([[0.5, -0.5], [0.5, -0.5]], requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss, bound = policy_loss(logp, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), mask, clip=0.2, ratio="behaviour")
    loss.sum().backward()
    assert bound.tolist() == [1, 1]
    assert (logp.grad != 0).tolist() == [[False, True], [True, False]]


def test_k3_is_never_negative_and_zero_where_policies_agree():
    logp = torch.linspace(-3, 0, 7)
    assert torch.all(kl_estimate(logp, torch.full((7,), -1.5)) >= 0)
    assert torch.all(kl_estimate(logp, logp) == 0)


def test_a_reply_without_text_gives_no_preference_gradient():
    """Method §7, rule 4: the released code trains speech instead."""
    logp = torch.zeros(1, 3, requires_grad=True)
    channels = torch.tensor([[2, 1, 2]], dtype=torch.int8)
    loss, _ = policy_loss(
        logp, torch.zeros(1, 3), torch.tensor([2.0]), select(channels, "text"), clip=0.2, ratio="behaviour"
    )
    loss.sum().backward()
    assert torch.all(logp.grad == 0)


OBJECTIVE = replace(PLAIN, anchor_speech=0.5)


def some_rows() -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(6):
        length = 4 + index
        channels = np.array([0, 2, 1, 1, 1, 1, 1, 1, 2, 0], dtype=np.int8)[:length]
        sampled = index < 4
        rows.append(
            Row(
                prompt_ids=np.arange(1, 4 + index, dtype=np.int32),
                reply_ids=rng.integers(1, 60, length).astype(np.int32),
                channels=channels,
                weight=0.25 if sampled else 0.5,
                behaviour=rng.normal(-1, 0.3, length).astype(np.float32) if sampled else None,
                advantages=(float(rng.normal()),) if sampled else (),
            )
        )
    return rows


def loss_of(rows: list[Row], mix: float) -> tuple[float, dict]:
    """Log-probabilities made from the ids, so that a row has the same ones in every batch."""
    batch = collate(rows, pad=0, routes=1, temperature=1.0, device=torch.device("cpu"))
    logp = -(batch.targets % 7).float() / 5.0
    loss, tally = micro_batch_loss(batch, logp, torch.ones_like(logp), logp - 0.1, OBJECTIVE, mix)
    return loss.item(), tally


def test_micro_batches_add_up_to_the_whole():
    rows = some_rows()
    whole, tally = loss_of(rows, 0.4)
    first, one = loss_of(rows[:3], 0.4)
    second, two = loss_of(rows[3:], 0.4)
    one.merge(two)
    assert first + second == pytest.approx(whole, abs=1e-6)
    for name in ("kl_text", "kl_speech", "entropy_text", "entropy_speech"):
        assert one.mean(name) == pytest.approx(tally.mean(name), abs=1e-6)
    assert one.largest == pytest.approx(tally.largest)


def test_mix_zero_is_the_anchor_and_mix_one_the_preference():
    rows = some_rows()
    _, tally = loss_of(rows, 0.4)
    assert loss_of(rows, 0.0)[0] == pytest.approx(tally.total("loss_anchor"), abs=1e-6)
    assert loss_of(rows, 1.0)[0] == pytest.approx(tally.total("loss_preference"), abs=1e-6)
