"""Which prompts and demonstrations belong to which iteration: an order fixed by the seed, epoch after epoch. Pure."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

PROMPTS, DEMONSTRATIONS, EVALUATION = range(3)
"""Streams of random numbers within a run."""


class EpochSampler:
    """Deals indices out in order. The order of an epoch depends on the seed and the epoch's number only."""

    def __init__(self, count: int, seed: int, stream: int | Sequence[int]) -> None:
        """count: rows of the data. stream: keeps several ledgers of one run apart."""
        self._count, self._streams = count, [stream] if isinstance(stream, int) else list(stream)
        self._seed = seed
        self._epoch = -1
        self._order: np.ndarray = np.empty(0, dtype=np.int64)
        self.position = 0
        """Rows dealt so far, over all epochs."""

    def take(self, rows: int) -> list[int]:
        """The next `rows` indices."""
        taken = [self._at(self.position + offset) for offset in range(rows)]
        self.position += rows
        return taken

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        if epoch != self._epoch:
            # The order of `permutation`, in half the memory: 4 bytes a row.
            order = np.arange(self._count, dtype=np.int32 if self._count < 2**31 else np.int64)
            np.random.default_rng([self._seed, *self._streams, epoch]).shuffle(order)
            self._epoch, self._order = epoch, order
        return int(self._order[place])


class MixtureSampler:
    """Deals indices out of several sources, each in its own order, in proportion to weights.

    The n-th row of a source of weight w is due at (n + ½) / w, and what is due first comes first: any rows that follow
    one another have each source's share of them, but for a row or so (Sainte-Laguë's method of apportionment). What has
    been dealt out of each source follows from the position alone.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int, stream: int) -> None:
        """counts: rows of each source; they lie one behind another. weights: positive."""
        self._ledgers = [EpochSampler(count, seed, [stream, source]) for source, count in enumerate(counts)]
        self._shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self._begins = np.concatenate([[0], np.cumsum(counts)[:-1]]).tolist()
        self._position = 0
        self._dealt = self._dealt_by(0)

    @property
    def position(self) -> int:
        """Rows dealt so far, of all sources."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        self._position, self._dealt = position, self._dealt_by(position)
        for ledger, dealt in zip(self._ledgers, self._dealt, strict=True):
            ledger.position = int(dealt)

    def take(self, rows: int) -> list[int]:
        """The next `rows` indices."""
        taken = []
        for _ in range(rows):
            source = self._next()
            self._dealt[source] += 1
            taken += [self._begins[source] + index for index in self._ledgers[source].take(1)]
        self._position += rows
        return taken

    def _next(self) -> int:
        return int(np.argmin((self._dealt + 0.5) / self._shares))

    def _dealt_by(self, position: int) -> np.ndarray:
        """int64 [sources]: rows of each source among the first `position`."""
        # So many of each are due by then for certain; the few that are left are dealt out one by one.
        certain = np.floor(self._shares * (position - len(self._shares))) - 1
        self._dealt = np.maximum(0, certain).astype(np.int64)
        while self._dealt.sum() < position:
            self._dealt[self._next()] += 1
        return self._dealt


class Sampler(Protocol):
    """What a run deals out its rows by."""

    position: int
    """Rows dealt so far; set to go on from there."""

    def take(self, rows: int) -> list[int]:
        """The next `rows` indices."""
        ...


def build_sampler(counts: Sequence[int], weights: Sequence[float], seed: int, stream: int) -> Sampler:
    """A ledger of one source, or a mixture of several."""
    return EpochSampler(counts[0], seed, stream) if len(counts) == 1 else MixtureSampler(counts, weights, seed, stream)


def draw_seeds(seed: int, stream: int, iteration: int, count: int) -> list[int]:
    """Seeds for the sampler, one a prompt, that no other iteration or stream of the run shares."""
    state = np.random.SeedSequence([seed, stream, iteration]).generate_state(count)
    return [int(value) >> 1 for value in state]  # vLLM adds the reply's index: stay clear of the top
