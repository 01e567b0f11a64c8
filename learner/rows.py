"""The learner's rows, and how rows become the padded tensors of a micro-batch.

Rows are padded on the right and attention is causal, so padding needs no attention mask: it comes after everything
that counts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt with a reply to learn from: a sampled reply (preference) or a demonstration (anchor)."""

    prompt_ids: np.ndarray
    """int32 [P]."""
    reply_ids: np.ndarray
    """int32 [T]."""
    channels: np.ndarray
    """int8 [T]."""
    weight: float
    """Weight of the row in its loss; the weights of a whole batch add up to 1 by kind of row."""
    allowed: np.ndarray | None = None
    """int8 [T], sets of `speech.interleave.Kind`: the tokens that the sampler could draw at each position. None:
    all."""
    behaviour: np.ndarray | None = None
    """float32 [T]: the sampler's log-probabilities; None for demonstrations."""
    advantages: tuple[float, ...] = ()
    """One for each route."""

    @property
    def is_anchor(self) -> bool:
        return self.behaviour is None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows as tensors. Flat tensors hold the N reply tokens of all rows, dense ones [R, T] hold them by row."""

    input_ids: Tensor
    """int64 [R, L]."""
    sources: Tensor
    """int64 [N]: flat position, within [R, L], whose output predicts each reply token."""
    targets: Tensor
    """int64 [N]."""
    allowed: Tensor
    """int64 [N]; 0 where every token was allowed."""
    temperatures: Tensor
    """float32 [N]: the sampler's for sampled replies, 1 for demonstrations."""
    cells: Tensor
    """int64 [N]: where each reply token lies in the flattened dense tensors."""
    channels: Tensor
    """int8 [R, T]; -1 beyond a row's end."""
    behaviour: Tensor
    """float32 [R, T]; 0 where there is none."""
    advantages: Tensor
    """float32 [R, routes]."""
    weights: Tensor
    """float32 [R]."""
    is_anchor: Tensor
    """bool [R]."""

    def dense(self, flat: Tensor) -> Tensor:
        """Spreads a flat tensor [N] over rows, [R, T], zero elsewhere. Keeps gradients."""
        shape = self.channels.shape
        return flat.new_zeros(shape[0] * shape[1]).index_put((self.cells,), flat).view(shape)


def collate(rows: list[Row], *, pad: int, routes: int, temperature: float, device: torch.device) -> MicroBatch:
    """Pads rows to the longest. temperature: the sampler's."""
    length = max(len(row) for row in rows)
    longest = max(len(row.reply_ids) for row in rows)
    input_ids = np.full((len(rows), length), pad, dtype=np.int64)
    channels = np.full((len(rows), longest), -1, dtype=np.int8)
    behaviour = np.zeros((len(rows), longest), dtype=np.float32)
    advantages = np.zeros((len(rows), routes), dtype=np.float32)
    sources, cells, allowed, temperatures = [], [], [], []
    for index, row in enumerate(rows):
        prompt, reply = len(row.prompt_ids), len(row.reply_ids)
        input_ids[index, :prompt] = row.prompt_ids
        input_ids[index, prompt : prompt + reply] = row.reply_ids
        channels[index, :reply] = row.channels
        if row.behaviour is not None:
            behaviour[index, :reply] = row.behaviour
            advantages[index] = row.advantages
        sources.append(index * length + prompt - 1 + np.arange(reply))
        cells.append(index * longest + np.arange(reply))
        temperatures.append(np.full(reply, 1.0 if row.is_anchor else temperature, dtype=np.float32))
        allowed.append(np.zeros(reply, dtype=np.int64) if row.allowed is None else row.allowed.astype(np.int64))

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return MicroBatch(
        input_ids=tensor(input_ids),
        sources=tensor(np.concatenate(sources)),
        targets=tensor(np.concatenate([row.reply_ids for row in rows]).astype(np.int64)),
        allowed=tensor(np.concatenate(allowed)),
        temperatures=tensor(np.concatenate(temperatures)),
        cells=tensor(np.concatenate(cells)),
        channels=tensor(channels),
        behaviour=tensor(behaviour),
        advantages=tensor(advantages),
        weights=tensor(np.asarray([row.weight for row in rows], dtype=np.float32)),
        is_anchor=tensor(np.asarray([row.is_anchor for row in rows])),
    )


def split(rows: list[Row], parts: int) -> list[list[Row]]:
    """Deals rows out into `parts` lists of equal size (to one row), long rows spread evenly."""
    ordered = sorted(rows, key=len, reverse=True)
    return [ordered[part::parts] for part in range(parts)]
