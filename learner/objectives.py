"""The losses, as pure functions of log-probabilities (method §3, §4 and §5).

Tensors have one row a sequence and one column a token: [R, T]. Losses come out by token, by row or by pair; what they
are averaged over is decided by weights that belong to the whole batch (`controller.batch`), so that rows can be split
over micro-batches and ranks and the parts simply added.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

RATIOS = ("truncated", "behaviour", "one")
"""What the probability ratio of the policy gradient is taken against, see `policy_terms`."""


def policy_terms(
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
      "behaviour"  min(ρA, clip(ρ)A), ρ = exp(logp − sampler).
      "one"        ρ = 1 and no clipping, as in the authors' released code.

    Returns the loss, [R, T], and where a bound was in force (clip or cap), bool [R, T].
    """
    if ratio not in RATIOS:
        raise ValueError(f"unknown ratio {ratio!r}; allowed: {', '.join(RATIOS)}")
    advantage = advantage[:, None]
    if ratio == "one":
        return -torch.exp(logp - logp.detach()) * advantage, torch.zeros_like(logp, dtype=torch.bool)
    rho = torch.exp(logp - (old if ratio == "truncated" else sampler))
    free, clipped = rho * advantage, rho.clamp(1.0 - clip, 1.0 + clip_high) * advantage
    loss, bound = -torch.minimum(free, clipped), clipped < free
    if ratio == "truncated":
        weight = torch.exp(old - sampler)
        loss, bound = loss * weight.clamp(max=cap), bound | (weight > cap)
    return loss, bound


def kl_estimate(logp: Tensor, reference: Tensor) -> Tensor:
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


def anchor_loss(logp: Tensor, text: Tensor, speech: Tensor, *, weight_text: float, weight_speech: float) -> Tensor:
    """[R]: weighted next-token loss over each demonstration's reply (method §4).

    logp: [R, T]. text, speech: bool [R, T], the tokens of each channel. The mean over a row is weighted by channel.
    """
    weights = weight_text * text.to(logp.dtype) + weight_speech * speech.to(logp.dtype)
    return -(logp * weights).sum(-1) / weights.sum(-1).clamp(min=1e-8)
