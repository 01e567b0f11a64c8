"""How the learner's rows become the tensors of a micro-batch.

Rows lie one behind another (`learner.sequence_packing`). For a model that cannot take them so they are padded on the
right,
which needs no attention mask: attention is causal, and padding comes after everything that counts.

Encoder features in the prompts of a micro-batch: where their frames go in place of embeddings.
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
    """K frames."""

    slots: Tensor
    """int64 [K], flat positions within the input ids, ascending."""
    frames: Tensor
    """float32 [K, W]."""

    @classmethod
    def of(
        cls, prompts: Iterable[tuple[np.ndarray, str | None, int]], slot: int | None, device: torch.device
    ) -> "AudioFeatures | None":
        """prompts: ids, the file of features, and the flat position where the prompt begins. None where no prompt has
        features."""
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
        """What lies before a flat position."""
        count = int((self.slots < position).sum())
        return AudioFeatures(slots=self.slots[:count], frames=self.frames[:count])

    def put_into(self, embedded: Tensor) -> Tensor:
        """embedded: [R, L, W]. Returns the same with the frames in their slots."""
        flat = embedded.flatten(0, 1).index_put((self.slots,), self.frames.to(embedded.dtype))
        return flat.view(embedded.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows as tensors, demonstrations for the anchor last. Flat tensors hold the N scored tokens of all rows, dense
    ones [R, T] have all reply tokens by row."""

    input_ids: Tensor
    """int64 [1, tokens of all rows], or [R, L] without a packing."""
    packing: Packing | None
    """None: rows are padded to the longest."""
    heard: AudioFeatures | None
    """None: no prompt has features."""
    sources: Tensor
    """int64 [N]: flat position, within `input_ids`, whose output predicts each token that is scored."""
    targets: Tensor
    """int64 [N]."""
    allowed: Tensor
    """int64 [N]; 0 where every token was allowed."""
    temperatures: Tensor
    """float32 [N]: the sampler's, and 1 for the anchor."""
    cells: Tensor
    """int64 [N]: where each scored token lies in the flattened dense tensors."""
    scored: Tensor
    """bool [R, T]: the tokens that carry a loss; no other has a log-probability."""
    compared: tuple[int, int, int]
    """How many rows, how many of their tokens, and how many of the scored ones are no anchor's: the first so many.
    Only they are compared with the start model."""
    streams: int
    """Tokens of a step of the model."""
    channels: Tensor
    """int8 [R, T]; -1 beyond a row's end."""
    behaviour: Tensor
    """float32 [R, T]; 0 where there is none."""
    sampled: Tensor
    """bool [R]: rows that have one."""
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

    def scoring(self) -> dict[str, Any]:
        """What `learner.policy.PolicyModel` is asked."""
        flat = {name: getattr(self, name) for name in ("sources", "targets", "allowed", "temperatures")}
        return {"input_ids": self.input_ids, **flat, "packing": self.packing, "heard": self.heard}

    def comparing(self) -> dict[str, Any]:
        """The same of the rows that are compared with the start model."""
        rows, tokens, scored = self.compared
        asked = {name: getattr(self, name)[:scored] for name in ("sources", "targets", "allowed", "temperatures")}
        asked["input_ids"] = self.input_ids[:rows] if self.packing is None else self.input_ids[:, :tokens]
        asked["packing"] = None if self.packing is None else self.packing.first(rows, tokens // self.streams)
        asked["heard"] = None if self.heard is None else self.heard.before(asked["input_ids"].numel())
        return asked

    def dense(self, flat: Tensor) -> Tensor:
        """Spreads a flat tensor [N] over rows, [R, T], zero elsewhere. Keeps gradients."""
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
    """Lays rows out.

    pad: with which token rows are padded to the longest; None: they are packed. temperature: the sampler's; the
    anchor's demonstrations are scored at 1, over all tokens. scored: which reply tokens of a row carry a loss,
    bool [T]; None: all. slot: the token that stands for a frame of features. streams: tokens that the model takes in a
    step; the output of a step predicts all those of the next, each at the place of its own stream.
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
    behaviour = np.zeros((len(rows), longest), dtype=np.float32)
    advantages, weights = np.zeros((2, len(rows), routes), dtype=np.float32)
    sources, targets, cells, allowed, temperatures = [], [], [], [], []
    for index, (row, places) in enumerate(zip(rows, map(np.flatnonzero, needed), strict=True)):
        prompt, reply = len(row.prompt_ids), len(row.reply_ids)
        ids[prompts[index] + np.arange(prompt)] = row.prompt_ids
        ids[replies[index] + np.arange(reply)] = row.reply_ids
        channels[index, :reply] = row.channels
        if row.behaviour is not None:
            behaviour[index, :reply] = row.behaviour
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
        packing=Packing.of(layout.steps(streams), device) if pad is None else None,
        heard=AudioFeatures.of(
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
        compared=(others, layout.tokens(others), sum(int(mask.sum()) for mask in needed[:others])),
        streams=streams,
        channels=tensor(channels),
        behaviour=tensor(behaviour),
        sampled=tensor([row.behaviour is not None for row in rows]),
        anchor_weights=tensor([row.anchor_weight for row in rows], np.float32),
        advantages=tensor(advantages),
        weights=tensor(weights),
        kl_weights=tensor([row.kl_weights for row in rows], np.float32),
        pairs=tensor(np.reshape(pairs, (-1, 2)), np.int64),
        pair_weights=tensor([item.weight for item in items if isinstance(item, TrainingPair)], np.float32),
    )


def _layout(rows: Sequence[TrainingSample]) -> PackedLayout:
    return PackedLayout.of([row.prompt for row in rows], [(len(row.prompt_ids), len(row.reply_ids)) for row in rows])
