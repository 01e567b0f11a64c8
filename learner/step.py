"""One micro-batch: from log-probabilities to the loss and the numbers worth keeping."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives import anchor_loss, kl_estimate, masked_mean, policy_loss
from learner.rows import MicroBatch
from learner.tally import Tally
from speech.channels import select


@dataclass(frozen=True, kw_only=True)
class Route:
    """Which tokens a score trains. The score itself has become an advantage by now."""

    channel: str
    """"text", "speech" or "all"."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The constants of the loss (method §3, §4)."""

    routes: tuple[Route, ...]
    clip: float
    ratio: str
    kl_text: float
    """β of the text channel."""
    kl_speech: float
    boundary: str
    """The channel that begin- and end-of-speech tokens train with."""
    anchor_text: float
    anchor_speech: float

    @property
    def needs_reference(self) -> bool:
        return self.kl_text > 0 or self.kl_speech > 0


def micro_batch_loss(
    batch: MicroBatch, logp: Tensor, entropy: Tensor, reference: Tensor | None, objective: Objective, mix: float
) -> tuple[Tensor, Tally]:
    """This micro-batch's part of L = (1 − λ) · L_anchor + λ · L_pref (method §1).

    logp, entropy, reference: flat [N]. Returns the loss, a scalar with gradient, and its tally.
    """
    dense = batch.dense(logp)
    sampled = (batch.channels >= 0) & ~batch.is_anchor[:, None]
    masks = {name: select(batch.channels, name, boundary=objective.boundary) for name in ("text", "speech")}
    tally = Tally()

    preference = torch.zeros_like(batch.weights)
    for index, route in enumerate(objective.routes):
        mask = select(batch.channels, route.channel, boundary=objective.boundary) & sampled
        loss, bound = policy_loss(
            dense, batch.behaviour, batch.advantages[:, index], mask, clip=objective.clip, ratio=objective.ratio
        )
        preference = preference + route.weight * loss
        counted = batch.weights > 0
        tally.add("clip_fraction", bound[counted].sum().item(), mask[counted].sum().item())

    if reference is not None:
        divergence = kl_estimate(dense, batch.dense(reference))
        for name, beta in (("text", objective.kl_text), ("speech", objective.kl_speech)):
            mask = masks[name] & sampled
            preference = preference + beta * masked_mean(divergence, mask)
            tally.add(f"kl_{name}", (divergence.detach() * mask).sum().item(), mask.sum().item())

    anchor = anchor_loss(
        dense,
        masks["text"],
        masks["speech"],
        weight_text=objective.anchor_text,
        weight_speech=objective.anchor_speech,
    )
    loss_preference = (batch.weights * preference)[~batch.is_anchor].sum()
    loss_anchor = (batch.weights * anchor)[batch.is_anchor].sum()

    tally.add("loss_preference", loss_preference.item())
    tally.add("loss_anchor", loss_anchor.item())
    gap = (dense.detach() - batch.behaviour).abs()
    entropies = batch.dense(entropy)
    for name, mask in masks.items():
        mask = mask & sampled
        tally.add(f"entropy_{name}", (entropies * mask).sum().item(), mask.sum().item())
        if mask.any():
            tally.see(f"logp_gap_{name}", gap[mask].max().item())
    return (1.0 - mix) * loss_anchor + mix * loss_preference, tally
