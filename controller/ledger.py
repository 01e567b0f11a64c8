"""Which prompts and demonstrations belong to which iteration: an order fixed by the seed, epoch after epoch. Pure."""

import numpy as np

PROMPTS, DEMONSTRATIONS, EVALUATION = range(3)
"""Streams of random numbers within a run."""


class Ledger:
    """Deals indices out in order. The order of an epoch depends on the seed and the epoch's number only."""

    def __init__(self, count: int, seed: int, stream: int) -> None:
        """count: rows of the data. stream: keeps several ledgers of one run apart."""
        self._count, self._seed, self._stream = count, seed, stream
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
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
            generator = np.random.default_rng([self._seed, self._stream, epoch])
            self._epoch, self._order = epoch, generator.permutation(self._count)
        return int(self._order[place])


def draw_seeds(seed: int, stream: int, iteration: int, count: int) -> list[int]:
    """Seeds for the sampler, one a prompt, that no other iteration or stream of the run shares."""
    state = np.random.SeedSequence([seed, stream, iteration]).generate_state(count)
    return [int(value) >> 1 for value in state]  # vLLM adds the reply's index: stay clear of the top
