"""Where rows lie that follow one another in one sequence, without padding, and with each prompt once.

A prompt that several rows share (the replies of a group, mostly) lies there for the first of them only: attention is
causal, so its outputs are the same whatever follows. Layers compute it once, and the gradients of all its replies meet
in it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where R rows of N tokens in all begin."""

    prompts: np.ndarray
    """int64 [R]: where each row's prompt is, maybe that of an earlier row."""
    replies: np.ndarray
    """int64 [R]."""
    sizes: np.ndarray
    """int64 [R, 2]: tokens of the prompt and of the reply."""
    own: np.ndarray
    """bool [R]: whether the prompt is no earlier row's."""

    @classmethod
    def of(cls, prompts: Sequence[Hashable], sizes: Sequence[tuple[int, int]]) -> "Layout":
        """prompts: equal for equal ones. sizes: tokens of the prompt and of the reply."""
        seen: dict[Hashable, int] = {}
        starts, own, end = [], [], 0
        for prompt, (before, after) in zip(prompts, sizes, strict=True):
            own.append(prompt not in seen)
            if own[-1]:
                seen[prompt], end = end, end + before
            starts.append((seen[prompt], end))
            end += after
        where = np.array(starts, dtype=np.int64)
        return cls(prompts=where[:, 0], replies=where[:, 1], sizes=np.array(sizes, dtype=np.int64), own=np.array(own))

    def steps(self, streams: int) -> "Layout":
        """The same in steps of a model that takes so many tokens in each."""
        if streams == 1:
            return self
        parts = (self.prompts, self.replies, self.sizes)
        if any((part % streams).any() for part in parts):
            raise ValueError(f"rows of {streams} streams have {streams} tokens for each step")
        prompts, replies, sizes = (part // streams for part in parts)
        return Layout(prompts=prompts, replies=replies, sizes=sizes, own=self.own)

    def tokens(self, rows: int) -> int:
        """Of the first so many rows."""
        return int(self.replies[rows - 1] + self.sizes[rows - 1, 1]) if rows else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """The same for a model: what it is told beside the ids. Of one that takes several tokens in a step, N and L are
    steps."""

    positions: Tensor
    """int64 [1, N], from 0 in each row."""
    cells: Tensor
    """int64 [N]: where each token lies when rows are laid out, in the flattened [R, L]."""
    again: Tensor
    """int64 [2, M]: cells of the prompts that lie elsewhere, and the tokens that belong there."""
    shape: tuple[int, int]
    """R, L."""

    @classmethod
    def of(cls, layout: Layout, device: torch.device) -> "Packing":
        rows = len(layout.own)
        longest = int(layout.sizes.sum(1).max())
        total = layout.tokens(rows)
        positions, cells, again = np.empty(total, np.int64), np.empty(total, np.int64), [np.empty((2, 0), np.int64)]
        for row in range(rows):
            before, after = layout.sizes[row]
            prompt = layout.prompts[row] + np.arange(before)
            if layout.own[row]:
                positions[prompt], cells[prompt] = np.arange(before), row * longest + np.arange(before)
            else:
                again.append(np.stack([row * longest + np.arange(before), prompt]))
            reply = layout.replies[row] + np.arange(after)
            positions[reply] = before + np.arange(after)
            cells[reply] = row * longest + positions[reply]
        return cls(
            positions=torch.from_numpy(positions)[None].to(device),
            cells=torch.from_numpy(cells).to(device),
            again=torch.from_numpy(np.concatenate(again, axis=1)).to(device),
            shape=(rows, longest),
        )

    def first(self, rows: int, tokens: int) -> "Packing":
        """Of the first so many rows, which have so many tokens."""
        again = self.again[:, self.again[0] < rows * self.shape[1]]
        return Packing(
            positions=self.positions[:, :tokens], cells=self.cells[:tokens], again=again, shape=(rows, self.shape[1])
        )

    def lay_out(self, states: Tensor, *, prompts: bool) -> Tensor:
        """[1, H, N, D] → [R, H, L, D], zero beyond a row's end. prompts: in all rows, or only where they lie."""
        rows, longest = self.shape
        tokens = states[0].transpose(0, 1)
        again = self.again if prompts else self.again[:, :0]
        laid_out: Any = _LayOut.apply(tokens, self.cells, again, rows * longest)
        return laid_out.view(rows, longest, *tokens.shape[1:]).transpose(1, 2)

    def collect(self, laid_out: Tensor) -> Tensor:
        """[R, L, H, D] → [1, N, H, D]."""
        found: Any = _Collect.apply(laid_out.flatten(0, 1), self.cells)
        return found[None]


class _LayOut(torch.autograd.Function):
    """Copies rows of a tensor to cells that are all different. Autograd's own would be slow on a CPU, or would add up
    in another order every time on a GPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, cells: Tensor, again: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(cells, again)
        laid_out = values.new_zeros(size, *values.shape[1:]).index_copy_(0, cells, values)
        return laid_out.index_copy_(0, again[0], values.index_select(0, again[1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,), (cells, again) = gradients, ctx.saved_tensors
        found = gradient.index_select(0, cells)
        return found.index_put_((again[1],), gradient.index_select(0, again[0]), accumulate=True), None, None, None


class _Collect(torch.autograd.Function):
    """The rows of a tensor at cells that are all different."""

    @staticmethod
    def forward(ctx: Any, laid_out: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.size = len(laid_out)
        return laid_out.index_select(0, cells)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (cells,) = gradients, ctx.saved_tensors
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, cells, gradient), None
