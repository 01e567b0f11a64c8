"""Attention that keeps packed rows apart (`learner.sequence_packing`).

Every other layer looks at a token by itself, and never sees where a row ends. Attention lays queries, keys and values
out by row, [R, L], for its kernel alone: a fraction of the work, and no mask of [N, N].

Importing this module registers it with transformers under the name `PACKED`.

Where rows lie that follow one another in one sequence, without padding, and with each prompt once.

A prompt that several rows share (the replies of a group, mostly) lies there for the first of them only: attention is
causal, so its outputs are the same whatever follows. Layers compute it once, and the gradients of all its replies meet
in it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from common.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
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
    def of(cls, prompts: Sequence[Hashable], sizes: Sequence[tuple[int, int]]) -> "PackedLayout":
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

    def steps(self, streams: int) -> "PackedLayout":
        """The same in steps of a model that takes so many tokens in each."""
        if streams == 1:
            return self
        parts = (self.prompts, self.replies, self.sizes)
        if any((part % streams).any() for part in parts):
            raise ValueError(f"rows of {streams} streams have {streams} tokens for each step")
        prompts, replies, sizes = (part // streams for part in parts)
        return PackedLayout(prompts=prompts, replies=replies, sizes=sizes, own=self.own)

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
    def of(cls, layout: PackedLayout, device: torch.device) -> "Packing":
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


PACKED = "duet_packed"


CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How far outputs of a row, relative to the largest, may be from those that it has alone, or beside others: rounding,
no more."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packing: Packing | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within rows, as transformers calls it.

    query: [1, heads, N, D]; key, value: [1, heads of keys, N, D]. Without a packing these are [R, heads, L, D].
    Returns [1, N, heads, D], or [R, L, heads, D]. Raises NotImplementedError for what a model wants beyond this.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError(
            f"{type(module).__name__} wants a mask or soft-capped scores: learner.sequence_packing=false"
        )
    if packing is not None:
        query = packing.lay_out(query, prompts=False)
        key, value = (packing.lay_out(states, prompts=True) for states in (key, value))
    mask, length = None, query.shape[2]
    if sliding_window is not None and length > sliding_window:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
    found = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    ).transpose(1, 2)
    if packing is not None:
        found = packing.collect(found)
    return found, None


AttentionInterface.register(PACKED, attend)


@torch.no_grad()
def use_packing(model: nn.Module) -> None:
    """Has a transformers model keep packed rows apart, and tries it: rows at once must come out as each alone.

    Raises InputError for a model that does not.
    """
    refusal = f"learner.sequence_packing: {type(model).__name__} cannot learn from packed rows, "
    remedy = "; set learner.sequence_packing=false, which pads them"
    setter: Any = getattr(model, "set_attn_implementation", None)
    if setter is not None:
        setter(PACKED)
    settings: Any = model.config
    if setter is None or settings._attn_implementation != PACKED:
        raise InputError(f"{refusal}its attention cannot be replaced (transformers' AttentionInterface){remedy}")
    body: Any = model.model
    device = next(model.parameters()).device
    # Two of them begin with the same three tokens, their prompt.
    rows = [torch.arange(5) + 1, torch.tensor([1, 2, 3, 9]), torch.arange(4) + 2]
    layout = PackedLayout.of(["a", "a", "b"], [(3, 2), (3, 1), (2, 2)])
    packing, sizes = Packing.of(layout, device), [5, 1, 4]
    vocabulary = int(settings.get_text_config().vocab_size)
    streams = getattr(model, "streams", 1)
    sizes = [size * streams for size in sizes]

    def ids(tokens: Tensor) -> Tensor:
        return (tokens[None] % vocabulary).to(device).repeat_interleave(streams, dim=1)

    def outputs(parts: list[Tensor]) -> Tensor:
        where = {"position_ids": packing.positions, "packing": packing}
        return body(input_ids=ids(torch.cat(parts)), use_cache=False, **where)[0][0].float()

    laid = [rows[0], rows[1][3:], rows[2]]
    other = torch.tensor([1, 2, 3, 8, 8])
    together, changed = outputs(laid).split(sizes), outputs([other, *laid[1:]]).split(sizes)
    limit = CLOSE[next(model.parameters()).dtype]
    if any(
        (one - moved).abs().max() > limit * one.abs().max()
        for one, moved in zip(together[1:], changed[1:], strict=True)
    ):
        raise InputError(f"{refusal}whose tokens see those of other rows{remedy}")
    for row, found in zip(rows, together, strict=True):
        alone = body(input_ids=ids(row), use_cache=False)[0][0].float()
        alone = alone[len(alone) - len(found) :]
        if not (found - alone).abs().max() <= limit * alone.abs().max():
            raise InputError(f"{refusal}which come out otherwise than each by itself{remedy}")
