"""The losses, as pure functions of log-probabilities (method §3 and §4).

Tensors have one row a sequence and one column a token: [R, T]. A loss is a sum over rows of the row's weight times a
mean over the row's selected tokens, so that rows can be split over micro-batches and ranks and the parts simply added.
The weights are those of the whole batch (`controller.batch`).
"""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[R]: mean of values [R, T] over each row's selected tokens; 0 for rows without any."""
    weights = mask.to(values.dtype)
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1.0)


def policy_loss(
    logp: Tensor, behaviour: Tensor, advantage: Tensor, mask: Tensor, *, clip: float, ratio: str
) -> tuple[Tensor, Tensor]:
    """Clipped policy-gradient loss of GRPO for each row, without KL (method §3).

    logp: [R, T] of the policy, with gradient. behaviour: [R, T] as the sampler reported it. advantage: [R].
    mask: bool [R, T], the tokens that the route trains. clip: ε.
    ratio: "behaviour" for ρ = exp(logp − behaviour); "one" for ratio 1 without clipping, as the released code has it.
    Returns the loss [R] and, [R], the number of tokens where the clipped term was the one used.
    """
    advantage = advantage[:, None]
    if ratio == "one":
        rho = torch.exp(logp - logp.detach())
        return masked_mean(-rho * advantage, mask), torch.zeros_like(advantage[:, 0])
    if ratio != "behaviour":
        raise ValueError(f"unknown ratio {ratio!r}; allowed: 'behaviour', 'one'")
    rho = torch.exp(logp - behaviour)
    free, clipped = rho * advantage, rho.clamp(1.0 - clip, 1.0 + clip) * advantage
    bound = ((clipped < free) & mask).sum(-1)
    return masked_mean(-torch.minimum(free, clipped), mask), bound


def kl_estimate(logp: Tensor, reference: Tensor) -> Tensor:
    """[R, T]: the k3 estimator of KL(policy ‖ reference) at sampled tokens, exp(d) − d − 1, d = reference − logp.

    Schulman, "Approximating KL divergence" (2020).
    """
    difference = reference - logp
    return torch.exp(difference) - difference - 1.0


def anchor_loss(logp: Tensor, text: Tensor, speech: Tensor, *, weight_text: float, weight_speech: float) -> Tensor:
    """[R]: weighted next-token loss over each demonstration's reply (method §4).

    logp: [R, T]. text, speech: bool [R, T], the tokens of each channel. The mean over a row is weighted by channel.
    """
    weights = weight_text * text.to(logp.dtype) + weight_speech * speech.to(logp.dtype)
    return -(logp * weights).sum(-1) / weights.sum(-1).clamp(min=1e-8)
