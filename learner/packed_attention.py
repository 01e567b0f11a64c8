"""Attention within packed rows (`learner.sequence_packing`): rows in one sequence, without padding, each prompt once.

All other layers treat each token separately. Attention lays queries, keys and values out by row, [R, L], for its kernel
only. This is a fraction of the work, and needs no [N, N] mask.

A prompt that several rows share, mostly the replies of a group, is stored for the first of them only. Attention is
causal, so its outputs do not depend on the reply. Layers compute it once, and it sums the gradients of all replies.

Importing this module registers the attention with transformers under the name `PACKED`.
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
    """Positions of R rows in a sequence of N tokens."""

    prompts: np.ndarray
    """int64 [R]: start of each row's prompt, which may be an earlier row's."""
    replies: np.ndarray
    """int64 [R]: start of each reply."""
    sizes: np.ndarray
    """int64 [R, 2]: lengths of prompt and reply."""
    own: np.ndarray
    """bool [R]: False if the row uses an earlier row's prompt."""

    @classmethod
    def from_rows(cls, prompts: Sequence[Hashable], sizes: Sequence[tuple[int, int]]) -> "PackedLayout":
        """Lay rows out. prompts: a key per row, equal for equal prompts. sizes: lengths of prompt and reply."""
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
        """Return the layout in steps of a model that takes `streams` tokens per step."""
        if streams == 1:
            return self
        parts = (self.prompts, self.replies, self.sizes)
        if any((part % streams).any() for part in parts):
            raise ValueError(f"rows of {streams} streams must have {streams} tokens for each step")
        prompts, replies, sizes = (part // streams for part in parts)
        return PackedLayout(prompts=prompts, replies=replies, sizes=sizes, own=self.own)

    def tokens(self, rows: int) -> int:
        """Return the number of tokens of the first `rows` rows."""
        return int(self.replies[rows - 1] + self.sizes[rows - 1, 1]) if rows else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """A packed layout as tensors, which the model gets beside the ids. N and L count steps of the model."""

    positions: Tensor
    """int64 [1, N], from 0 in each row."""
    cells: Tensor
    """int64 [N]: index of each token in the flattened [R, L]."""
    shared: Tensor
    """int64 [2, M]: cells of shared prompts, and the tokens that belong there."""
    shape: tuple[int, int]
    """R, L."""

    @classmethod
    def from_layout(cls, layout: PackedLayout, device: torch.device) -> "Packing":
        rows = len(layout.own)
        longest = int(layout.sizes.sum(1).max())
        total = layout.tokens(rows)
        positions, cells, shared = np.empty(total, np.int64), np.empty(total, np.int64), [np.empty((2, 0), np.int64)]
        for row in range(rows):
            before, after = layout.sizes[row]
            prompt = layout.prompts[row] + np.arange(before)
            if layout.own[row]:
                positions[prompt], cells[prompt] = np.arange(before), row * longest + np.arange(before)
            else:
                shared.append(np.stack([row * longest + np.arange(before), prompt]))
            reply = layout.replies[row] + np.arange(after)
            positions[reply] = before + np.arange(after)
            cells[reply] = row * longest + positions[reply]
        return cls(
            positions=torch.from_numpy(positions)[None].to(device),
            cells=torch.from_numpy(cells).to(device),
            shared=torch.from_numpy(np.concatenate(shared, axis=1)).to(device),
            shape=(rows, longest),
        )

    def first(self, rows: int, tokens: int) -> "Packing":
        """Return the packing of the first `rows` rows, which have `tokens` tokens."""
        shared = self.shared[:, self.shared[0] < rows * self.shape[1]]
        return Packing(
            positions=self.positions[:, :tokens], cells=self.cells[:tokens], shared=shared, shape=(rows, self.shape[1])
        )

    def lay_out(self, states: Tensor, *, prompts: bool) -> Tensor:
        """[1, H, N, D] → [R, H, L, D], zero beyond a row's end. prompts: copy a shared prompt to all its rows."""
        rows, longest = self.shape
        tokens = states[0].transpose(0, 1)
        shared = self.shared if prompts else self.shared[:, :0]
        laid_out: Any = _LayOut.apply(tokens, self.cells, shared, rows * longest)
        return laid_out.view(rows, longest, *tokens.shape[1:]).transpose(1, 2)

    def collect(self, laid_out: Tensor) -> Tensor:
        """[R, L, H, D] → [1, N, H, D]."""
        found: Any = _Collect.apply(laid_out.flatten(0, 1), self.cells)
        return found[None]


class _LayOut(torch.autograd.Function):
    """Copies rows of a tensor to distinct cells. Autograd's own backward is slow on a CPU, and on a GPU adds up in a
    different order each time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, cells: Tensor, shared: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(cells, shared)
        laid_out = values.new_zeros(size, *values.shape[1:]).index_copy_(0, cells, values)
        return laid_out.index_copy_(0, shared[0], values.index_select(0, shared[1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,), (cells, shared) = gradients, ctx.saved_tensors
        found = gradient.index_select(0, cells)
        return found.index_put_((shared[1],), gradient.index_select(0, shared[0]), accumulate=True), None, None, None


class _Collect(torch.autograd.Function):
    """Gathers the rows of a tensor at distinct cells."""

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


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Maximum difference of a row's outputs, relative to the largest, when packed with other rows: rounding only."""


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

    Args:
        query: [1, heads, N, D]; [R, heads, L, D] without a packing.
        key: [1, key heads, N, D]; [R, key heads, L, D] without a packing.
        value: Like key.

    Returns [1, N, heads, D], or [R, L, heads, D]. Raises NotImplementedError for a mask or soft-capped scores.
    """
    if attention_mask is not None or softcap is not None:
        raise NotImplementedError(
            f"{type(module).__name__} needs a mask or soft-capped scores: set learner.sequence_packing=false"
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
    """Switch a transformers model to packed attention, and check it: packed rows must give each row's own outputs.

    Raises InputError for a model that does not support it.
    """
    refusal = f"learner.sequence_packing: {type(model).__name__} does not support packed rows, "
    remedy = "; set learner.sequence_packing=false to pad rows"
    setter: Any = getattr(model, "set_attn_implementation", None)
    if setter is not None:
        setter(PACKED)
    settings: Any = model.config
    if setter is None or settings._attn_implementation != PACKED:
        raise InputError(f"{refusal}its attention cannot be replaced (transformers' AttentionInterface){remedy}")
    body: Any = model.model
    device = next(model.parameters()).device
    # Two rows share a prompt of three tokens.
    rows = [torch.arange(5) + 1, torch.tensor([1, 2, 3, 9]), torch.arange(4) + 2]
    layout = PackedLayout.from_rows(["a", "a", "b"], [(3, 2), (3, 1), (2, 2)])
    packing, sizes = Packing.from_layout(layout, device), [5, 1, 4]
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
    limit = TOLERANCE[next(model.parameters()).dtype]
    if any(
        (one - moved).abs().max() > limit * one.abs().max()
        for one, moved in zip(together[1:], changed[1:], strict=True)
    ):
        raise InputError(f"{refusal}tokens attend to other rows{remedy}")
    for row, found in zip(rows, together, strict=True):
        alone = body(input_ids=ids(row), use_cache=False)[0][0].float()
        alone = alone[len(alone) - len(found) :]
        if not (found - alone).abs().max() <= limit * alone.abs().max():
            raise InputError(f"{refusal}outputs differ from those of each row alone{remedy}")
