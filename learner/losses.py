"""The losses, as pure functions of log-probabilities (method §3, §4 and §5).

Tensors have one row a sequence and one column a token: [R, T]. Losses come out by token, by row or by pair; what they
are averaged over is decided by weights that belong to the whole batch (`controller.batch`), so that rows can be split
over micro-batches and ranks and the parts simply added.

One micro-batch: from log-probabilities to the loss and the numbers worth keeping.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.collate import MicroBatch
from learner.config import Objective, PairLoss
from learner.step_metrics import StepMetrics
from speech.vocabulary import select

RATIOS = ("truncated", "rollout", "none")
"""What the probability ratio of the policy gradient is taken against, see `grpo_loss`."""


def grpo_loss(
    logp: Tensor,
    sampler: Tensor,
    old: Tensor,
    advantage: Tensor,
    *,
    clip: float,
    clip_high: float,
    ratio: str,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """Clipped policy-gradient loss of GRPO for each token, without KL (method §3).

    logp: [R, T] of the policy, with gradient. sampler: [R, T] as the sampler reported it. old: [R, T], the learner's
    own before the step, without gradient. advantage: [R]. clip, clip_high: ε below and above 1. cap: of the weight w.

    ratio, with A the advantage:
      "truncated"  w · min(ρA, clip(ρ)A), ρ = exp(logp − old), w = min(exp(old − sampler), cap): the difference between
                   sampler and learner is corrected token by token and bounded, never as a product over the reply.
      "rollout"    min(ρA, clip(ρ)A), ρ = exp(logp − sampler).
      "none"       ρ = 1 and no clipping, as in the authors' released code.

    Returns the loss, [R, T], and where a bound was in force (clip or cap), bool [R, T].
    """
    if ratio not in RATIOS:
        raise ValueError(f"unknown ratio {ratio!r}; allowed: {', '.join(RATIOS)}")
    advantage = advantage[:, None]
    if ratio == "none":
        return -torch.exp(logp - logp.detach()) * advantage, torch.zeros_like(logp, dtype=torch.bool)
    rho = torch.exp(logp - (old if ratio == "truncated" else sampler))
    free, clipped = rho * advantage, rho.clamp(1.0 - clip, 1.0 + clip_high) * advantage
    loss, bound = -torch.minimum(free, clipped), clipped < free
    if ratio == "truncated":
        weight = torch.exp(old - sampler)
        loss, bound = loss * weight.clamp(max=cap), bound | (weight > cap)
    return loss, bound


def kl_k3(logp: Tensor, reference: Tensor) -> Tensor:
    """[R, T]: the k3 estimator of KL(policy ‖ reference) at sampled tokens, exp(d) − d − 1, d = reference − logp.

    Schulman, "Approximating KL divergence" (2020).
    """
    difference = reference - logp
    return torch.exp(difference) - difference - 1.0


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """[P]: −log σ(β · [(s⁺ − s⁻) − (s⁺_ref − s⁻_ref)]) of each pair (method §5; Rafailov et al. 2023).

    Each argument is [P]: log-probabilities summed over the selected tokens of a reply.
    """
    return -logsigmoid(beta * ((chosen - rejected) - (reference_chosen - reference_rejected)))


def sft_loss(logp: Tensor, text: Tensor, speech: Tensor, *, weight_text: float, weight_speech: float) -> Tensor:
    """[R]: weighted next-token loss over each demonstration's reply (method §4).

    logp: [R, T]. text, speech: bool [R, T], the tokens of each channel. The mean over a row is weighted by channel.
    """
    weights = weight_text * text.to(logp.dtype) + weight_speech * speech.to(logp.dtype)
    return -(logp * weights).sum(-1) / weights.sum(-1).clamp(min=1e-8)


def micro_batch_loss(
    batch: MicroBatch, logp: Tensor, entropy: Tensor, reference: Tensor | None, objective: Objective, mix: float
) -> tuple[Tensor, StepMetrics]:
    """This micro-batch's part of L = (1 − λ) · L_anchor + λ · L_pref (method §1).

    logp, entropy, reference: flat [N]. Returns the loss, a scalar with gradient, and its tally.
    """
    tally = StepMetrics()
    dense = batch.dense(logp)
    start = None if reference is None else batch.dense(reference)
    preference = _policy_gradient(batch, dense, objective, tally)
    if start is not None:
        preference = preference + _divergence(batch, dense, start, objective, tally)
        if objective.pairs is not None:
            preference = preference + _pairs(batch, dense, start, objective, objective.pairs, tally)
    text, speech = (select(batch.channels, name, boundary=objective.boundary) for name in ("text", "speech"))
    by_row = sft_loss(dense, text, speech, weight_text=objective.anchor_text, weight_speech=objective.anchor_speech)
    anchor = (batch.anchor_weights * by_row).sum()
    tally.add("loss_preference", preference.item())
    tally.add("loss_anchor", anchor.item())
    _watch(batch, dense, batch.dense(entropy), {"text": text, "speech": speech}, tally)
    return (1.0 - mix) * anchor + mix * preference, tally


def _policy_gradient(batch: MicroBatch, logp: Tensor, objective: Objective, tally: StepMetrics) -> Tensor:
    """Sum over routes and tokens of weight · term, every route with its own advantage and normaliser."""
    total = logp.new_zeros(())
    for index, route in enumerate(objective.routes):
        weights = batch.weights[:, index]
        terms, bound = grpo_loss(
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


def _divergence(batch: MicroBatch, logp: Tensor, start: Tensor, objective: Objective, tally: StepMetrics) -> Tensor:
    """KL to the start model by channel, each with its own coefficient, mask and normaliser."""
    total = logp.new_zeros(())
    divergence = kl_k3(logp, start)
    for index, (name, beta) in enumerate((("text", objective.kl_text), ("speech", objective.kl_speech))):
        mask = select(batch.channels, name, boundary=objective.boundary) & batch.sampled[:, None] & batch.scored
        by_row = divergence.masked_fill(~mask, 0.0).sum(-1)
        total = total + beta * (batch.kl_weights[:, index] * by_row).sum()
        tally.add(f"kl_{name}", by_row.sum().item(), mask.sum().item())
    return total


def _pairs(
    batch: MicroBatch, logp: Tensor, start: Tensor, objective: Objective, settings: PairLoss, tally: StepMetrics
) -> Tensor:
    mask = select(batch.channels, settings.channel, boundary=objective.boundary)
    policy, reference = ((values * mask).sum(-1)[batch.pairs] for values in (logp, start))
    losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], settings.beta)
    margins = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    tally.add("pair_accuracy", (margins > 0).sum().item(), len(margins))
    tally.add("pair_margin", margins.sum().item(), len(margins))
    return (batch.pair_weights * losses).sum()


def _watch(batch: MicroBatch, logp: Tensor, entropy: Tensor, masks: dict[str, Tensor], tally: StepMetrics) -> None:
    gap = (logp.detach() - batch.behaviour).abs()
    for name, mask in masks.items():
        mask = mask & batch.sampled[:, None] & batch.scored
        tally.add(f"entropy_{name}", (entropy * mask).sum().item(), mask.sum().item())
        if mask.any():
            tally.see(f"logp_gap_{name}", gap[mask].max().item())
