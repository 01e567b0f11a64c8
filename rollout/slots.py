"""Keys and values of the replies that are under way: a row for each, the rows in use in front."""

from typing import Any

import torch
from torch import Tensor


class Slots:
    """What layers of a transformers model take for a cache, in memory that is taken once. Whoever uses the rows knows
    which is whose; a step is everything that the model takes at once."""

    def __init__(
        self, *, layers: int, rows: int, heads: int, steps: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """heads, width: of the keys of a layer."""
        self._rows = torch.arange(rows, device=device)
        self._both = [torch.zeros(2, rows, heads, steps, width, dtype=dtype, device=device) for _ in range(layers)]
        """By layer: keys, values."""
        self._lengths = torch.zeros(0, dtype=torch.int64, device=device)
        self._longest = 0

    @staticmethod
    def row_bytes(*, layers: int, heads: int, steps: int, width: int, dtype: torch.dtype) -> int:
        return 2 * layers * heads * steps * width * dtype.itemsize

    def begin(self, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """The first rows each take a step more, behind so many. Returns positions int64 [n, 1], and which keys the step
        sees, bool [n, 1, 1, longest]."""
        self._lengths = torch.tensor(lengths, device=self._rows.device)
        self._longest = max(lengths) + 1
        seen = torch.arange(self._longest, device=self._rows.device) <= self._lengths[:, None]
        return self._lengths[:, None], seen[:, None, None]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keeps a step's [n, heads, 1, width]; returns all [n, heads, longest, width]. transformers' layers call it."""
        rows = self._rows[: len(self._lengths)]
        both = self._both[layer]
        both[0, rows, :, self._lengths] = keys[:, :, 0]
        both[1, rows, :, self._lengths] = values[:, :, 0]
        return both[0, : len(rows), :, : self._longest], both[1, : len(rows), :, : self._longest]

    def put(self, row: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """The first steps of a row: [heads, steps, width]."""
        self._both[layer][0, row, :, : keys.shape[1]] = keys
        self._both[layer][1, row, :, : keys.shape[1]] = values

    def copy(self, row: int, target: int, steps: int) -> None:
        """So many steps of a row to another."""
        for both in self._both:
            both[:, target, :, :steps] = both[:, row, :, :steps]
