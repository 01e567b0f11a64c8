"""One micro-batch: from log-probabilities to the loss and the numbers worth keeping."""

from torch import Tensor

from learner.collate import MicroBatch
from learner.objectives import anchor_loss, dpo_loss, kl_estimate, policy_terms
from learner.settings import Objective, PairLoss
from learner.tally import Tally
from speech.channels import select


def micro_batch_loss(
    batch: MicroBatch, logp: Tensor, entropy: Tensor, reference: Tensor | None, objective: Objective, mix: float
) -> tuple[Tensor, Tally]:
    """This micro-batch's part of L = (1 − λ) · L_anchor + λ · L_pref (method §1).

    logp, entropy, reference: flat [N]. Returns the loss, a scalar with gradient, and its tally.
    """
    tally = Tally()
    dense = batch.dense(logp)
    start = None if reference is None else batch.dense(reference)
    preference = _policy_gradient(batch, dense, objective, tally)
    if start is not None:
        preference = preference + _divergence(batch, dense, start, objective, tally)
        if objective.pairs is not None:
            preference = preference + _pairs(batch, dense, start, objective, objective.pairs, tally)
    text, speech = (select(batch.channels, name, boundary=objective.boundary) for name in ("text", "speech"))
    by_row = anchor_loss(dense, text, speech, weight_text=objective.anchor_text, weight_speech=objective.anchor_speech)
    anchor = (batch.anchor_weights * by_row).sum()
    tally.add("loss_preference", preference.item())
    tally.add("loss_anchor", anchor.item())
    _watch(batch, dense, batch.dense(entropy), {"text": text, "speech": speech}, tally)
    return (1.0 - mix) * anchor + mix * preference, tally


def _policy_gradient(batch: MicroBatch, logp: Tensor, objective: Objective, tally: Tally) -> Tensor:
    """Sum over routes and tokens of weight · term, every route with its own advantage and normaliser."""
    total = logp.new_zeros(())
    for index, route in enumerate(objective.routes):
        weights = batch.weights[:, index]
        terms, bound = policy_terms(
            logp,
            batch.behaviour,
            logp.detach(),
            batch.advantages[:, index],
            clip=objective.clip,
            clip_high=objective.clip_high,
            ratio=objective.ratio,
            cap=objective.cap,
        )
        mask = select(batch.channels, route.channel, boundary=objective.boundary) & (weights > 0)[:, None]
        # Padding has no log-probability of its own; masked before the sum, so that nothing leaks in.
        total = total + route.weight * (weights * terms.masked_fill(~mask, 0.0).sum(-1)).sum()
        tally.add("clip_fraction", (bound & mask).sum().item(), mask.sum().item())
    return total


def _divergence(batch: MicroBatch, logp: Tensor, start: Tensor, objective: Objective, tally: Tally) -> Tensor:
    """KL to the start model by channel, each with its own coefficient, mask and normaliser."""
    total = logp.new_zeros(())
    divergence = kl_estimate(logp, start)
    for index, (name, beta) in enumerate((("text", objective.kl_text), ("speech", objective.kl_speech))):
        mask = select(batch.channels, name, boundary=objective.boundary) & batch.sampled[:, None] & batch.scored
        by_row = divergence.masked_fill(~mask, 0.0).sum(-1)
        total = total + beta * (batch.kl_weights[:, index] * by_row).sum()
        tally.add(f"kl_{name}", by_row.sum().item(), mask.sum().item())
    return total


def _pairs(
    batch: MicroBatch, logp: Tensor, start: Tensor, objective: Objective, settings: PairLoss, tally: Tally
) -> Tensor:
    mask = select(batch.channels, settings.channel, boundary=objective.boundary)
    policy, reference = ((values * mask).sum(-1)[batch.pairs] for values in (logp, start))
    losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], settings.beta)
    margins = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    tally.add("pair_accuracy", (margins > 0).sum().item(), len(margins))
    tally.add("pair_margin", margins.sum().item(), len(margins))
    return (batch.pair_weights * losses).sum()


def _watch(batch: MicroBatch, logp: Tensor, entropy: Tensor, masks: dict[str, Tensor], tally: Tally) -> None:
    gap = (logp.detach() - batch.behaviour).abs()
    for name, mask in masks.items():
        mask = mask & batch.sampled[:, None] & batch.scored
        tally.add(f"entropy_{name}", (entropy * mask).sum().item(), mask.sum().item())
        if mask.any():
            tally.see(f"logp_gap_{name}", gap[mask].max().item())
