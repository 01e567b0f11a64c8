"""One micro-batch: parts add up, pairs stay together, and only tokens with a loss are scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.collate import collate
from learner.config import PairLoss
from learner.losses import micro_batch_loss
from learner.micro_batches import Item, TrainingPair, TrainingSample, split
from speech.vocabulary import select
from tests.learner.examples import OBJECTIVE as PLAIN

OBJECTIVE = replace(PLAIN, anchor_speech=0.5)


def some_rows() -> list[TrainingSample]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(6):
        length = 4 + index
        channels = np.array([0, 2, 1, 1, 1, 1, 1, 1, 2, 0], dtype=np.int8)[:length]
        sampled = index < 4
        rows.append(
            TrainingSample(
                prompt_ids=np.arange(1, 4 + index, dtype=np.int32),
                reply_ids=rng.integers(1, 60, length).astype(np.int32),
                channels=channels,
                anchor_weight=0.0 if sampled else 0.5,
                rollout_logprobs=rng.normal(-1, 0.3, length).astype(np.float32) if sampled else None,
                advantages=(float(rng.normal()),) if sampled else (),
                weights=(0.25 / length,) if sampled else (),
                kl_weights=(0.1, 0.02) if sampled else (0.0, 0.0),
            )
        )
    return rows


def loss_of(rows: list[Item], mix: float) -> tuple[float, dict]:
    """Compute the loss from log-probabilities that depend only on the ids: a row has the same in every batch."""
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
    assert one.maxima == pytest.approx(tally.maxima)


def test_mix_zero_is_the_anchor_and_mix_one_the_preference():
    rows = some_rows()
    _, tally = loss_of(rows, 0.4)
    assert loss_of(rows, 0.0)[0] == pytest.approx(tally.total("loss_anchor"), abs=1e-6)
    assert loss_of(rows, 1.0)[0] == pytest.approx(tally.total("loss_preference"), abs=1e-6)


def test_a_text_route_never_trains_speech():
    """Method §7, rule 4: a reply without text gives no gradient, whatever its weight. Nor does any other token."""
    rows = [replace(row, channels=np.where(row.channels == 0, 1, row.channels)) for row in some_rows()[:1]]
    rows += some_rows()[1:4]
    batch = collate(rows, pad=0, routes=1, temperature=1.0, device=torch.device("cpu"))
    logp = (-(batch.targets % 7).float() / 5.0).requires_grad_(True)
    free = replace(OBJECTIVE, ratio="none")  # a clipped token would have no gradient either
    loss, _ = micro_batch_loss(batch, logp, torch.ones_like(logp), None, free, 1.0)
    loss.backward()
    gradient = batch.dense(logp.grad)
    assert not gradient[0].any()
    assert not gradient[select(batch.channels, "speech")].any()
    assert gradient[select(batch.channels, "text")].any()


def some_items() -> list[Item]:
    """Return two pairs, the second of replies from a file, and the demonstrations."""
    rows = some_rows()
    bare = [replace(row, rollout_logprobs=None, advantages=(), weights=(), kl_weights=(0.0, 0.0)) for row in rows[:4]]
    first = [
        replace(row, rollout_logprobs=sampled.rollout_logprobs) for row, sampled in zip(bare[:2], rows[:2], strict=True)
    ]
    return [
        TrainingPair(chosen=first[0], rejected=first[1], weight=0.5),
        TrainingPair(chosen=bare[2], rejected=bare[3], weight=0.5),
        *rows[4:],
    ]


PAIRED = replace(PLAIN, routes=(), kl_text=0.0, kl_speech=0.0, pairs=PairLoss(channel="text", beta=0.2))


def pair_loss(items: list[Item], shift: float = 0.1) -> tuple[float, dict]:
    batch = collate(items, pad=0, routes=0, temperature=1.0, device=torch.device("cpu"))
    logp = -(batch.targets % 7).float() / 5.0
    reference = logp - shift * (batch.targets % 3).float()
    loss, tally = micro_batch_loss(batch, logp, torch.ones_like(logp), reference, PAIRED, 1.0)
    return loss.item(), tally


def test_pairs_stay_together_and_add_up():
    items = some_items()
    whole, tally = pair_loss(items)
    parts = [pair_loss(part)[0] for part in split(items, 2)]
    assert sum(parts) == pytest.approx(whole, abs=1e-6)
    assert tally.sums["pair_accuracy"][1] == 2


def test_pairs_compare_the_selected_tokens_only():
    """By hand: sums over text tokens of policy minus reference, for the first pair alone."""
    pair = replace(some_items()[0], weight=1.0)

    def text_sum(row: TrainingSample) -> float:
        chosen = (row.channels == 0) | (row.channels == 3)
        return float((0.1 * (row.reply_ids % 3))[chosen].sum())

    margin = 0.2 * (text_sum(pair.chosen) - text_sum(pair.rejected))
    assert margin != 0
    loss, _ = pair_loss([pair, *some_rows()[4:]])
    assert loss == pytest.approx(-np.log(1 / (1 + np.exp(-margin))), abs=1e-6)


def test_at_the_start_model_a_pair_says_nothing_yet():
    loss, tally = pair_loss(some_items(), shift=0.0)
    assert loss == pytest.approx(np.log(2), abs=1e-6)
    assert tally.mean("pair_margin") == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reply", "anchor"),
    [
        ({}, [1, 1, 1, 1], [1, 1, 1, 1]),  # text by the route, speech by its KL term
        ({"kl_speech": 0.0}, [1, 0, 0, 0], [1, 1, 1, 1]),
        ({"kl_speech": 0.0, "anchor_speech": 0.0}, [1, 0, 0, 0], [1, 0, 0, 0]),
        ({"kl_speech": 0.0, "boundary": "text"}, [1, 1, 0, 0], [1, 1, 1, 1]),
    ],
)
def test_only_tokens_that_carry_a_loss_are_scored(changes, reply, anchor):
    """Method §7, rule 8: nothing else reaches the output layer."""
    objective = replace(PLAIN, **changes)
    rows = some_rows()
    sampled, demonstration = rows[0], replace(rows[4], channels=rows[0].channels, reply_ids=rows[0].reply_ids)
    assert objective.scored(sampled.channels, sampled, sampled).tolist() == [bool(x) for x in reply]
    assert objective.scored(demonstration.channels, demonstration, demonstration).tolist() == [bool(x) for x in anchor]

    def scored(item, row):
        return objective.scored(row.channels, item, row)

    batch = collate(
        [demonstration, sampled], pad=0, routes=1, temperature=1.0, device=torch.device("cpu"), scored=scored
    )
    assert batch.sampled.tolist() == [True, False], "the anchor comes last"
    assert len(batch.targets) == sum(reply) + sum(anchor)
    assert batch.reference_sizes == (1, len(sampled), sum(reply))
    assert batch.scored.tolist() == [[bool(x) for x in reply], [bool(x) for x in anchor]]


def test_leaving_tokens_without_a_loss_out_changes_no_loss():
    rows = some_rows()
    objective = replace(PLAIN, kl_speech=0.0, anchor_speech=0.0)
    losses = []
    for scored in (None, lambda item, row: objective.scored(row.channels, item, row)):
        batch = collate(rows, pad=0, routes=1, temperature=1.0, device=torch.device("cpu"), scored=scored)
        logp = -(batch.targets % 7).float() / 5.0
        loss, tally = micro_batch_loss(batch, logp, torch.ones_like(logp), logp - 0.1, objective, 0.4)
        losses.append((loss.item(), tally.mean("kl_text"), tally.mean("entropy_text")))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
