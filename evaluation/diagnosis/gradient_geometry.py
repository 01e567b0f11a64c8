"""Norms and inner products of the gradients of several losses, by layer, from backward passes over the same rows.

Every loss has the form L = −Σ w · logp over reply tokens, so token weights define it. The policy gradient at ratio one
has w = A / (tokens · replies · groups) (method §3), the anchor w = 1 / (tokens · rows) (method §4).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.collate import AudioFeatures
from learner.policy import PolicyModel

POSITIONS = 8192
"""Maximum padded positions of a micro-batch, unless a single row is longer."""
LOGITS = 2**26
"""Maximum logits of a micro-batch, unless a single row has more. 256 MiB in float32; peak use is a few times that."""
EMBEDDING, FINAL_NORM, OUTPUT, OTHER = "embedding", "final norm", "lm_head", "other"
TIED = "embedding and lm_head"
"""Layer name of a tied embedding and output parameter."""
LAYER = re.compile(r"^model\.(?:language_model\.)?layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientBatch:
    """Prompt and reply to score."""

    prompt_ids: np.ndarray
    """int32 [P], P ≥ 1. The first reply token is predicted from the last prompt token."""
    reply_ids: np.ndarray
    """int32 [T]."""
    temperature: float = 1.0
    """Sampling temperature, for a sampled reply."""
    allowed: np.ndarray | None = None
    """int8 [T], allowed sets of `speech.grammar.TokenKind`. None: all tokens."""
    features: str | None = None
    """File of encoder features for the prompt's slots."""
    slot: int | None = None
    """Placeholder token for one feature frame."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientGeometry:
    """Inner products of the gradients of K losses, by layer."""

    losses: tuple[str, ...]
    layers: tuple[str, ...]
    """Layer names in forward order."""
    products: np.ndarray
    """float64 [layers, K, K]. The sum over layers gives the products of the full gradients."""
    values: np.ndarray
    """float64 [K], loss values."""

    def product(self, one: str, other: str, layer: str | None = None) -> float:
        """Return the inner product of two gradients, in one layer or in all."""
        products = self.products.sum(0) if layer is None else self.products[self.layers.index(layer)]
        return float(products[self.losses.index(one), self.losses.index(other)])

    def norm(self, loss: str, layer: str | None = None) -> float:
        return float(np.sqrt(self.product(loss, loss, layer)))

    def cosine(self, one: str, other: str, layer: str | None = None) -> float | None:
        """Return the cosine of two gradients. None if either is zero."""
        length = self.norm(one, layer) * self.norm(other, layer)
        return self.product(one, other, layer) / length if length > 0 else None

    def summed(self, parts: Mapping[str, Sequence[str]]) -> "GradientGeometry":
        """Return the geometry of sums of losses. parts: the losses in each sum, by name of the sum."""
        matrix = np.array([[float(name in members) for name in self.losses] for members in parts.values()])
        return GradientGeometry(
            losses=tuple(parts),
            layers=self.layers,
            products=matrix @ self.products @ matrix.T,
            values=matrix @ self.values,
        )


def measure_geometry(
    scorer: PolicyModel, passages: Sequence[GradientBatch], weights: Mapping[str, Sequence[np.ndarray]]
) -> GradientGeometry:
    """Measure the gradients of the losses L_k = −Σ w_k · logp with respect to trainable parameters.

    weights: float [T] per passage, by loss. Runs one forward pass per micro-batch, and one backward pass per loss with
    nonzero weights in it. Tokens and passages with zero weight in all losses are not scored (method §7, rule 8).
    Memory: one micro-batch (`POSITIONS`, `LOGITS`), and one float32 gradient per loss on the CPU.
    """
    model: Any = scorer.model
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = [parameter for _, parameter in named]
    totals = {loss: [torch.zeros(p.shape, dtype=torch.float32) for p in parameters] for loss in weights}
    values = dict.fromkeys(weights, 0.0)
    for concerned, indices in _by_losses(weights, len(passages)).items():
        for batch in _micro_batches([passages[i] for i in indices], _outputs(scorer)):
            members = [indices[place] for place in batch]
            weighed = {
                loss: np.concatenate([weights[loss][i] for i in members]).astype(np.float32) for loss in concerned
            }
            chosen = np.any([w != 0 for w in weighed.values()], axis=0)
            logps = _score(scorer, [passages[i] for i in members], chosen)
            for place, (loss, weight) in enumerate(weighed.items()):
                value = -(torch.from_numpy(weight[chosen]).to(logps.device) * logps).sum()
                values[loss] += value.item()
                found = torch.autograd.grad(value, parameters, retain_graph=place < len(weighed) - 1, allow_unused=True)
                for total, gradient in zip(totals[loss], found, strict=True):
                    if gradient is not None:
                        total += gradient.to("cpu", torch.float32)
    tied = getattr(model.lm_head, "weight", None) is model.get_input_embeddings().weight
    return _geometry([layer_of(name, tied=tied) for name, _ in named], totals, values)


def log_probabilities(scorer: PolicyModel, passages: Sequence[GradientBatch]) -> list[np.ndarray]:
    """Return float32 [T] per passage, in nats, under the distribution defined by `PolicyModel`."""
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(passages)
    with torch.no_grad():
        for batch in _micro_batches(passages, _outputs(scorer)):
            members = [passages[i] for i in batch]
            counts = [len(passage.reply_ids) for passage in members]
            logps = _score(scorer, members, np.ones(sum(counts), dtype=bool)).float().cpu().numpy()
            for index, part in zip(batch, np.split(logps, np.cumsum(counts)[:-1]), strict=True):
                found[index] = part
    return found


def layer_of(name: str, *, tied: bool = False) -> str:
    """Return the layer of a causal language model's parameter, from its name in Hugging Face models.

    tied: the embedding is also the output layer. Towers of other modalities are "other".
    """
    if found := LAYER.match(name):
        return f"layers.{found[1]}"
    parts = name.split(".")
    if "embed_tokens" in parts:
        return TIED if tied else EMBEDDING
    if parts[0] == "lm_head":
        return OUTPUT
    return FINAL_NORM if parts[0] == "model" and parts[-2:-1] == ["norm"] else OTHER


def _by_losses(weights: Mapping[str, Sequence[np.ndarray]], count: int) -> dict[tuple[str, ...], list[int]]:
    """Group passages by their losses with nonzero weights, to avoid needless backward passes."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index in range(count):
        concerned = tuple(loss for loss, by_passage in weights.items() if np.any(by_passage[index]))
        if concerned:
            kinds.setdefault(concerned, []).append(index)
    return kinds


def _outputs(scorer: PolicyModel) -> int:
    forbidden: Any = scorer.forbidden
    return forbidden.shape[1]


def _micro_batches(passages: Sequence[GradientBatch], outputs: int) -> list[list[int]]:
    """Return index batches of passages with similar length, within `POSITIONS` and `LOGITS`."""
    batches: list[list[int]] = []
    tokens = 0
    # Longest first: the first row of a batch sets the padded length.
    for index in sorted(range(len(passages)), key=lambda i: len(passages[i]), reverse=True):
        more = len(passages[index].reply_ids)
        if batches:
            padded = (len(batches[-1]) + 1) * len(passages[batches[-1][0]])
            if padded <= POSITIONS and (tokens + more) * outputs <= LOGITS:
                batches[-1].append(index)
                tokens += more
                continue
        batches.append([index])
        tokens = more
    return batches


def _score(scorer: PolicyModel, passages: Sequence[GradientBatch], chosen: np.ndarray) -> Tensor:
    """Return log-probabilities [N] of the chosen reply tokens, in order. chosen: bool over all reply tokens."""
    length, streams = max(len(passage) for passage in passages), scorer.streams
    # Padding has no effect: attention is causal, and no source position lies in it.
    input_ids = np.zeros((len(passages), length), dtype=np.int64)
    sources, targets, allowed, temperatures = [], [], [], []
    for row, passage in enumerate(passages):
        prompt, reply = len(passage.prompt_ids), len(passage.reply_ids)
        input_ids[row, : prompt + reply] = np.concatenate([passage.prompt_ids, passage.reply_ids])
        sources.append(row * length + prompt - streams + np.arange(reply))
        targets.append(passage.reply_ids.astype(np.int64))
        allowed.append(np.zeros(reply, np.int64) if passage.allowed is None else passage.allowed.astype(np.int64))
        temperatures.append(np.full(reply, passage.temperature, dtype=np.float32))
    device = next(scorer.parameters()).device
    flat = [torch.from_numpy(np.concatenate(part)[chosen]).to(device) for part in (sources, targets, allowed)]
    heat = torch.from_numpy(np.concatenate(temperatures)[chosen]).to(device)
    prompts = ((passage.prompt_ids, passage.features, row * length) for row, passage in enumerate(passages))
    heard = AudioFeatures.from_prompts(prompts, passages[0].slot, device)
    logps, _ = scorer(torch.from_numpy(input_ids).to(device), *flat, heat, audio_features=heard)
    return logps


def _geometry(places: list[str], totals: Mapping[str, list[Tensor]], values: Mapping[str, float]) -> GradientGeometry:
    layers = sorted(set(places), key=_depth)
    products = np.zeros((len(layers), len(totals), len(totals)))
    for index, place in enumerate(places):
        stacked = [gradients[index].flatten().double() for gradients in totals.values()]
        for row, one in enumerate(stacked):
            for column, other in enumerate(stacked[: row + 1]):
                products[layers.index(place), row, column] += float(one @ other)
    lower = np.tril(products, -1)
    return GradientGeometry(
        losses=tuple(totals),
        layers=tuple(layers),
        products=products + lower.transpose(0, 2, 1),
        values=np.array(list(values.values())),
    )


def _depth(layer: str) -> tuple[int, int]:
    if layer.startswith("layers."):
        return 1, int(layer.removeprefix("layers."))
    return (EMBEDDING, "layers", FINAL_NORM, OUTPUT, OTHER).index(EMBEDDING if layer == TIED else layer), 0
