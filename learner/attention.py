"""Attention that keeps packed rows apart (`learner.packing`).

Every other layer looks at a token by itself, and never sees where a row ends. Attention lays queries, keys and values
out by row, [R, L], for its kernel alone: a fraction of the work, and no mask of [N, N].

Importing this module registers it with transformers under the name `PACKED`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from learner.packing import Layout, Packing
from speech.errors import InputError

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
        raise NotImplementedError(f"{type(module).__name__} wants a mask or soft-capped scores: learner.packing=false")
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
    refusal = f"learner.packing: {type(model).__name__} cannot learn from packed rows, "
    remedy = "; set learner.packing=false, which pads them"
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
    layout = Layout.of(["a", "a", "b"], [(3, 2), (3, 1), (2, 2)])
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
