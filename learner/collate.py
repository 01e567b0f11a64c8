"""Collates training rows, and their prompts' encoder features, into the tensors of a micro-batch.

Rows are packed into one sequence (`learner.sequence_packing`). A model that does not support this gets rows padded on
the right. That needs no attention mask: attention is causal, and padding comes after every real token.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.micro_batches import Item, TrainingPair, TrainingSample
from learner.packed_attention import PackedLayout, Packing
from speech.audio import read_features


@dataclass(frozen=True, kw_only=True, eq=False)
class AudioFeatures:
    """K frames of encoder features, and the positions whose embeddings they replace."""

    slots: Tensor
    """int64 [K], flat positions within the input ids, ascending."""
    frames: Tensor
    """float32 [K, W]."""

    @classmethod
    def from_prompts(
        cls, prompts: Iterable[tuple[np.ndarray, str | None, int]], slot: int | None, device: torch.device
    ) -> "AudioFeatures | None":
        """Read the features of prompts. Return None if no prompt has any.

        Args:
            prompts: Token ids, file of features or None, and flat position of the prompt's first token.
            slot: The token that stands for a frame.
        """
        slots, frames = [], []
        for ids, features, start in prompts:
            if features is not None:
                places = np.flatnonzero(ids == slot)
                slots.append(start + places)
                frames.append(read_features(features, len(places)))
        if not slots:
            return None
        return cls(
            slots=torch.from_numpy(np.concatenate(slots)).to(device),
            frames=torch.from_numpy(np.concatenate(frames)).to(device),
        )

    def before(self, position: int) -> "AudioFeatures":
        """Return the frames before a flat position."""
        count = int((self.slots < position).sum())
        return AudioFeatures(slots=self.slots[:count], frames=self.frames[:count])

    def scatter_into(self, embedded: Tensor) -> Tensor:
        """Return the embeddings, [R, L, W], with the frames in their slots."""
        flat = embedded.flatten(0, 1).index_put((self.slots,), self.frames.to(embedded.dtype))
        return flat.view(embedded.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows as tensors, the anchor's demonstrations last.

    Flat tensors, [N], hold the scored tokens of all rows. Dense tensors, [R, T], hold all reply tokens by row.
    """

    input_ids: Tensor
    """int64 [1, tokens of all rows], or [R, L] without a packing."""
    packing: Packing | None
    """None: rows are padded to the longest."""
    audio_features: AudioFeatures | None
    """None: no prompt has features."""
    sources: Tensor
    """int64 [N]: flat position in `input_ids` whose output predicts each scored token."""
    targets: Tensor
    """int64 [N]."""
    allowed: Tensor
    """int64 [N], sets of token kinds; 0 where every token was allowed."""
    temperatures: Tensor
    """float32 [N]: the sampler's; 1 for the anchor."""
    cells: Tensor
    """int64 [N]: index of each scored token in the flattened dense tensors."""
    scored: Tensor
    """bool [R, T]: the tokens that carry a loss. No other token has a log-probability."""
    reference_sizes: tuple[int, int, int]
    """Numbers of rows, their tokens and their scored tokens that are not the anchor's. These come first, and only they
    are compared with the reference model."""
    streams: int
    """Tokens per step of the model."""
    channels: Tensor
    """int8 [R, T]; -1 beyond a row's end."""
    rollout_logprobs: Tensor
    """float32 [R, T], as the sampler reported them; 0 elsewhere."""
    sampled: Tensor
    """bool [R]: rows with rollout log-probabilities."""
    anchor_weights: Tensor
    """float32 [R]."""
    advantages: Tensor
    """float32 [R, routes]."""
    weights: Tensor
    """float32 [R, routes]."""
    kl_weights: Tensor
    """float32 [R, 2]: text, speech."""
    pairs: Tensor
    """int64 [P, 2]: rows of the chosen and the rejected reply."""
    pair_weights: Tensor
    """float32 [P]."""

    def policy_inputs(self) -> dict[str, Any]:
        """Return the arguments of `PolicyModel`, for all rows."""
        flat = {name: getattr(self, name) for name in ("sources", "targets", "allowed", "temperatures")}
        return {"input_ids": self.input_ids, **flat, "packing": self.packing, "audio_features": self.audio_features}

    def reference_inputs(self) -> dict[str, Any]:
        """Return the arguments of `PolicyModel`, for rows that are compared with the reference model."""
        rows, tokens, scored = self.reference_sizes
        inputs = {name: getattr(self, name)[:scored] for name in ("sources", "targets", "allowed", "temperatures")}
        inputs["input_ids"] = self.input_ids[:rows] if self.packing is None else self.input_ids[:, :tokens]
        inputs["packing"] = None if self.packing is None else self.packing.first(rows, tokens // self.streams)
        inputs["audio_features"] = (
            None if self.audio_features is None else self.audio_features.before(inputs["input_ids"].numel())
        )
        return inputs

    def dense(self, flat: Tensor) -> Tensor:
        """Scatter a flat tensor, [N], into rows, [R, T], zero elsewhere. Keeps gradients."""
        shape = self.channels.shape
        return flat.new_zeros(shape[0] * shape[1]).index_put((self.cells,), flat).view(shape)


def collate(
    items: Sequence[Item],
    *,
    routes: int,
    temperature: float,
    device: torch.device,
    scored: Callable[[Item, TrainingSample], np.ndarray] | None = None,
    pad: int | None = None,
    slot: int | None = None,
    streams: int = 1,
) -> MicroBatch:
    """Make the tensors of a micro-batch.

    Args:
        routes: Number of score routes.
        temperature: The sampler's. Demonstrations are scored at 1, over all tokens.
        scored: Returns the reply tokens of a row that carry a loss, bool [T]. None: all tokens do.
        pad: Token that pads rows to the longest. None: pack rows.
        slot: The token that stands for a frame of features.
        streams: Tokens per step of the model. The output of a step predicts all tokens of the next step, each at the
            position of its stream.
    """
    items = sorted(items, key=lambda item: any(row.anchor_weight for row in item.rows))
    rows = [row for item in items for row in item.rows]
    needed = [
        np.ones(len(row.reply_ids), dtype=bool) if scored is None else scored(item, row)
        for item in items
        for row in item.rows
    ]
    longest = max(len(row.reply_ids) for row in rows)
    layout = _layout(rows)
    if pad is None:
        input_ids = np.empty((1, layout.tokens(len(rows))), dtype=np.int64)
        prompts, replies = layout.prompts, layout.replies
    else:
        length = max(map(len, rows))
        input_ids = np.full((len(rows), length), pad, dtype=np.int64)
        prompts = np.arange(len(rows)) * length
        replies = prompts + layout.sizes[:, 0]
    ids = input_ids.reshape(-1)
    channels = np.full((len(rows), longest), -1, dtype=np.int8)
    rollout_logprobs = np.zeros((len(rows), longest), dtype=np.float32)
    advantages, weights = np.zeros((2, len(rows), routes), dtype=np.float32)
    sources, targets, cells, allowed, temperatures = [], [], [], [], []
    for index, (row, places) in enumerate(zip(rows, map(np.flatnonzero, needed), strict=True)):
        prompt, reply = len(row.prompt_ids), len(row.reply_ids)
        ids[prompts[index] + np.arange(prompt)] = row.prompt_ids
        ids[replies[index] + np.arange(reply)] = row.reply_ids
        channels[index, :reply] = row.channels
        if row.rollout_logprobs is not None:
            rollout_logprobs[index, :reply] = row.rollout_logprobs
        if row.weights:
            advantages[index], weights[index] = row.advantages, row.weights
        behind = np.where(places < streams, prompts[index] + prompt, replies[index])
        sources.append(behind + places - streams)
        targets.append(row.reply_ids[places])
        cells.append(index * longest + places)
        temperatures.append(np.full(len(places), 1.0 if row.anchor_weight else temperature, dtype=np.float32))
        allowed.append(np.zeros(len(places)) if row.allowed is None else row.allowed[places])
    is_scored = np.zeros(channels.size, dtype=bool)
    is_scored[np.concatenate(cells)] = True
    others = sum(not row.anchor_weight for row in rows)
    firsts = np.cumsum([0, *(len(item.rows) for item in items)])
    pairs = [(first, first + 1) for first, item in zip(firsts, items, strict=False) if isinstance(item, TrainingPair)]

    def tensor(values: Any, kind: Any = None) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=kind)).to(device)

    return MicroBatch(
        input_ids=tensor(input_ids),
        packing=Packing.from_layout(layout.steps(streams), device) if pad is None else None,
        audio_features=AudioFeatures.from_prompts(
            (
                (row.prompt_ids, row.features, int(prompts[index]))
                for index, row in enumerate(rows)
                if pad is not None or layout.own[index]
            ),
            slot,
            device,
        ),
        sources=tensor(np.concatenate(sources)),
        targets=tensor(np.concatenate(targets), np.int64),
        allowed=tensor(np.concatenate(allowed), np.int64),
        temperatures=tensor(np.concatenate(temperatures)),
        cells=tensor(np.concatenate(cells)),
        scored=tensor(is_scored.reshape(channels.shape)),
        reference_sizes=(others, layout.tokens(others), sum(int(mask.sum()) for mask in needed[:others])),
        streams=streams,
        channels=tensor(channels),
        rollout_logprobs=tensor(rollout_logprobs),
        sampled=tensor([row.rollout_logprobs is not None for row in rows]),
        anchor_weights=tensor([row.anchor_weight for row in rows], np.float32),
        advantages=tensor(advantages),
        weights=tensor(weights),
        kl_weights=tensor([row.kl_weights for row in rows], np.float32),
        pairs=tensor(np.reshape(pairs, (-1, 2)), np.int64),
        pair_weights=tensor([item.weight for item in items if isinstance(item, TrainingPair)], np.float32),
    )


def _layout(rows: Sequence[TrainingSample]) -> PackedLayout:
    return PackedLayout.from_rows(
        [row.prompt_key for row in rows], [(len(row.prompt_ids), len(row.reply_ids)) for row in rows]
    )
