"""Scoring with a model of several streams, each of which has an output layer of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Output = Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""Log-probabilities and entropies [n] of n scored tokens, from their tensors."""


def by_stream(outputs: Sequence[Output], streams: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N] and entropies [N], each token's from its own stream's output layer.

    outputs: by stream; all are used, also for no token, as ranks that share a layer use it together. streams: int64
    [N]. given: what an output takes, [N, …] each.
    """
    chosen = [(streams == stream).nonzero()[:, 0] for stream in range(len(outputs))]
    found = [output(tuple(part[places] for part in given)) for output, places in zip(outputs, chosen, strict=True)]
    logps, entropies = (torch.cat(parts) for parts in zip(*found, strict=True))
    back = torch.empty_like(streams)
    back[torch.cat(chosen)] = torch.arange(len(streams), device=streams.device)
    return logps[back], entropies[back]
