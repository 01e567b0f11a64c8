"""The losses, as pure functions of log-probabilities (method §3, §4 and §5).

Tensors are [R, T]: one row per sequence, one column per token. Losses are per token, row or pair. Weights that cover
the whole batch (`controller.batch`) define the averages, so rows can be split over micro-batches and ranks and the
parts added. `micro_batch_loss` combines them for one micro-batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.collate import MicroBatch
from learner.config import Objective, PairLoss
from learner.step_metrics import StepMetrics
from speech.vocabulary import select

RATIOS = ("truncated", "rollout", "none")
"""Denominators of the probability ratio, see `grpo_loss`."""


def grpo_loss(
    logp: Tensor,
    rollout_logprobs: Tensor,
    old_logprobs: Tensor,
    advantage: Tensor,
    *,
    clip: float,
    clip_high: float,
    ratio: str,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """Return GRPO's clipped policy-gradient loss of each token, without KL (method §3).

    Args:
        logp: [R, T], log-probabilities of the policy, with gradient.
        rollout_logprobs: [R, T], as the sampler reported them.
        old_logprobs: [R, T], the learner's own before the step, without gradient.
        advantage: [R], A below.
        clip: ε below 1.
        clip_high: ε above 1.
        ratio:
            "truncated"  w · min(ρA, clip(ρ)A), ρ = exp(logp − old), w = min(exp(old − rollout), cap). The difference
                         between sampler and learner is corrected per token and bounded, never as a product over the
                         reply.
            "rollout"    min(ρA, clip(ρ)A), ρ = exp(logp − rollout).
            "none"       ρ = 1 and no clipping, as in the authors' released code.
        cap: Upper bound of the importance weight w.

    Returns:
        The loss, [R, T], and where clip or cap was active, bool [R, T].
    """
    if ratio not in RATIOS:
        raise ValueError(f"unknown ratio {ratio!r}; allowed: {', '.join(RATIOS)}")
    advantage = advantage[:, None]
    if ratio == "none":
        return -torch.exp(logp - logp.detach()) * advantage, torch.zeros_like(logp, dtype=torch.bool)
    rho = torch.exp(logp - (old_logprobs if ratio == "truncated" else rollout_logprobs))
    free, clipped = rho * advantage, rho.clamp(1.0 - clip, 1.0 + clip_high) * advantage
    loss, bound = -torch.minimum(free, clipped), clipped < free
    if ratio == "truncated":
        weight = torch.exp(old_logprobs - rollout_logprobs)
        loss, bound = loss * weight.clamp(max=cap), bound | (weight > cap)
    return loss, bound


def kl_k3(logp: Tensor, reference: Tensor) -> Tensor:
    """Return the k3 estimate of KL(policy ‖ reference) at sampled tokens, [R, T]: exp(d) − d − 1, d = reference − logp.

    Schulman, "Approximating KL divergence" (2020).
    """
    difference = reference - logp
    return torch.exp(difference) - difference - 1.0


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """Return −log σ(β · [(s⁺ − s⁻) − (s⁺_ref − s⁻_ref)]) of each pair, [P] (method §5; Rafailov et al. 2023).

    Each tensor is [P]: log-probabilities summed over the selected tokens of a reply.
    """
    return -logsigmoid(beta * ((chosen - rejected) - (reference_chosen - reference_rejected)))


def sft_loss(logp: Tensor, text: Tensor, speech: Tensor, *, weight_text: float, weight_speech: float) -> Tensor:
    """Return the next-token loss of each demonstration's reply, a mean weighted by channel: [R] (method §4).

    Args:
        logp: [R, T].
        text: bool [R, T], the tokens of the text channel.
        speech: bool [R, T], the tokens of the speech channel.
    """
    weights = weight_text * text.to(logp.dtype) + weight_speech * speech.to(logp.dtype)
    return -(logp * weights).sum(-1) / weights.sum(-1).clamp(min=1e-8)


def micro_batch_loss(
    batch: MicroBatch, logp: Tensor, entropy: Tensor, reference: Tensor | None, objective: Objective, mix: float
) -> tuple[Tensor, StepMetrics]:
    """Return this micro-batch's part of L = (1 − λ) · L_anchor + λ · L_pref, and its metrics (method §1).

    Args:
        logp: [N], with gradient.
        entropy: [N].
        reference: [N], log-probabilities under the reference model; None if the objective needs none.
        mix: λ.
    """
    metrics = StepMetrics()
    dense = batch.dense(logp)
    start = None if reference is None else batch.dense(reference)
    preference = _policy_gradient(batch, dense, objective, metrics)
    if start is not None:
        preference = preference + _divergence(batch, dense, start, objective, metrics)
        if objective.pairs is not None:
            preference = preference + _pairs(batch, dense, start, objective, objective.pairs, metrics)
    text, speech = (select(batch.channels, name, boundary=objective.boundary) for name in ("text", "speech"))
    by_row = sft_loss(dense, text, speech, weight_text=objective.anchor_text, weight_speech=objective.anchor_speech)
    anchor = (batch.anchor_weights * by_row).sum()
    metrics.add("loss_preference", preference.item())
    metrics.add("loss_anchor", anchor.item())
    _add_policy_metrics(batch, dense, batch.dense(entropy), {"text": text, "speech": speech}, metrics)
    return (1.0 - mix) * anchor + mix * preference, metrics


def _policy_gradient(batch: MicroBatch, logp: Tensor, objective: Objective, metrics: StepMetrics) -> Tensor:
    """Sum weight · term over routes and tokens. Each route has its own advantage and normalizer."""
    total = logp.new_zeros(())
    for index, route in enumerate(objective.routes):
        weights = batch.weights[:, index]
        terms, bound = grpo_loss(
            logp,
            batch.rollout_logprobs,
            logp.detach(),
            batch.advantages[:, index],
            clip=objective.clip,
            clip_high=objective.clip_high,
            ratio=objective.ratio,
            cap=objective.cap,
        )
        mask = select(batch.channels, route.channel, boundary=objective.boundary) & (weights > 0)[:, None]
        # Padding has no log-probability of its own: mask it before the sum.
        total = total + route.weight * (weights * terms.masked_fill(~mask, 0.0).sum(-1)).sum()
        metrics.add("clip_fraction", (bound & mask).sum().item(), mask.sum().item())
    return total


def _divergence(batch: MicroBatch, logp: Tensor, start: Tensor, objective: Objective, metrics: StepMetrics) -> Tensor:
    """Sum the KL to the reference model over channels, each with its own coefficient, mask and normalizer."""
    total = logp.new_zeros(())
    divergence = kl_k3(logp, start)
    for index, (name, beta) in enumerate((("text", objective.kl_text), ("speech", objective.kl_speech))):
        mask = select(batch.channels, name, boundary=objective.boundary) & batch.sampled[:, None] & batch.scored
        by_row = divergence.masked_fill(~mask, 0.0).sum(-1)
        total = total + beta * (batch.kl_weights[:, index] * by_row).sum()
        metrics.add(f"kl_{name}", by_row.sum().item(), mask.sum().item())
    return total


def _pairs(
    batch: MicroBatch, logp: Tensor, start: Tensor, objective: Objective, settings: PairLoss, metrics: StepMetrics
) -> Tensor:
    mask = select(batch.channels, settings.channel, boundary=objective.boundary)
    policy, reference = ((values * mask).sum(-1)[batch.pairs] for values in (logp, start))
    losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], settings.beta)
    margins = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    metrics.add("pair_accuracy", (margins > 0).sum().item(), len(margins))
    metrics.add("pair_margin", margins.sum().item(), len(margins))
    return (batch.pair_weights * losses).sum()


def _add_policy_metrics(
    batch: MicroBatch, logp: Tensor, entropy: Tensor, masks: dict[str, Tensor], metrics: StepMetrics
) -> None:
    gap = (logp.detach() - batch.rollout_logprobs).abs()
    for name, mask in masks.items():
        mask = mask & batch.sampled[:, None] & batch.scored
        metrics.add(f"entropy_{name}", (entropy * mask).sum().item(), mask.sum().item())
        if mask.any():
            metrics.update_max(f"logp_gap_{name}", gap[mask].max().item())
