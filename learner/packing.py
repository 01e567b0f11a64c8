"""Where rows lie that follow one another in one sequence, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """Where R rows of N tokens in all lie."""

    positions: Tensor
    """int64 [1, N], from 0 in each row."""
    cells: Tensor
    """int64 [N]: where each token lies in the flattened [R, L]."""
    shape: tuple[int, int]
    """R, L."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Packing":
        longest = max(lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        cells = positions + np.repeat(np.arange(len(lengths)) * longest, lengths)
        return cls(
            positions=torch.from_numpy(positions)[None].to(device),
            cells=torch.from_numpy(cells).to(device),
            shape=(len(lengths), longest),
        )

    def first(self, rows: int, tokens: int) -> "Packing":
        """Of the first so many rows, which have so many tokens."""
        return Packing(positions=self.positions[:, :tokens], cells=self.cells[:tokens], shape=(rows, self.shape[1]))


class Pick(torch.autograd.Function):
    """Rows of a tensor by indices that are all different. `index_select` must add up gradients for the case that they
    are not, which is slow on a CPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (index,) = gradients, ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, *gradient.shape[1:]).index_copy_(0, index, gradient), None
