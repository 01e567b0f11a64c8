"""Attention that keeps packed rows apart (`learner.packing`).

Every other layer looks at a token by itself, and never sees where a row ends. Attention lays queries, keys and values
out by row, [R, L], for its kernel alone: a fraction of the work, and no mask of [N, N].

Importing this module registers it with transformers under the name `PACKED`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from learner.packing import Packing, Pick
from speech.errors import InputError

PACKED = "duet_packed"
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How far outputs of a row, relative to the largest, may be from those that it has alone: rounding, no more."""


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
        query, key, value = (_spread(states, packing) for states in (query, key, value))
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
        found = Pick.apply(found.flatten(0, 1), packing.cells)[None]
    return found, None


AttentionInterface.register(PACKED, attend)


def _spread(states: Tensor, packing: Packing) -> Tensor:
    """[1, H, N, D] → [R, H, L, D]; zero beyond a row's end, which attention that is causal never sees."""
    rows, longest = packing.shape
    tokens = states[0].transpose(0, 1)
    laid_out = tokens.new_zeros(rows * longest, *tokens.shape[1:]).index_copy(0, packing.cells, tokens)
    return laid_out.view(rows, longest, *tokens.shape[1:]).transpose(1, 2)


@torch.no_grad()
def use_packing(model: nn.Module) -> None:
    """Has a transformers model keep packed rows apart, and tries it: two rows at once must come out as each alone.

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
    rows = [torch.arange(5) + 1, torch.arange(3) + 7, torch.arange(4) + 2]
    sizes = [len(row) for row in rows]
    vocabulary = int(settings.get_text_config().vocab_size)

    def outputs(parts: list[Tensor]) -> Tensor:
        packing = Packing.of([len(part) for part in parts], device)
        ids = (torch.cat(parts)[None] % vocabulary).to(device)
        return body(input_ids=ids, position_ids=packing.positions, packing=packing, use_cache=False)[0][0].float()

    together = outputs(rows).split(sizes)
    changed = outputs([(rows[0] + 1), *rows[1:]]).split(sizes)
    if any(not torch.equal(one, other) for one, other in zip(together[1:], changed[1:], strict=True)):
        raise InputError(f"{refusal}whose tokens see those of other rows{remedy}")
    limit = CLOSE[next(model.parameters()).dtype]
    for row, found in zip(rows, together, strict=True):
        alone = body(input_ids=(row[None] % vocabulary).to(device), use_cache=False)[0][0].float()
        if not (found - alone).abs().max() <= limit * alone.abs().max():
            raise InputError(f"{refusal}which come out otherwise than each by itself{remedy}")
