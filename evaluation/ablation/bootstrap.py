"""How sure a mean over held-out prompts is: the percentile bootstrap, paired over prompts. Pure."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
CHUNK = 500
"""Resamples drawn at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A mean over seeds and prompts, in the unit of its values."""

    value: float
    low: float
    """Lower end of the 95 % interval over resampled prompts."""
    high: float
    by_seed: tuple[float, ...]
    """The mean over prompts of each seed."""
    samples: np.ndarray
    """float64 [resamples]: the mean over seeds, for each set of resampled prompts."""

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else None


class Bootstrap:
    """Resamples of a fixed list of prompts, always the same ones.

    Prompts are drawn, not replies: every arm and every seed that is measured here answers the same drawn prompts, so
    what makes a prompt easy or hard for all of them cancels in a difference.
    """

    def __init__(self, prompts: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.prompts, self.resamples, self._seed = prompts, resamples, seed

    @cached_property
    def counts(self) -> np.ndarray:
        """float32 [resamples, prompts]: how often a resample holds a prompt; a row sums to the number of prompts."""
        generator = np.random.default_rng(self._seed)
        counts = np.empty((self.resamples, self.prompts), dtype=np.float32)
        for begin in range(0, self.resamples, CHUNK):
            rows = min(CHUNK, self.resamples - begin)
            drawn = generator.integers(self.prompts, size=(rows, self.prompts))
            drawn += np.arange(rows)[:, None] * self.prompts  # a range of numbers of its own for each row
            counts[begin : begin + rows] = np.bincount(drawn.ravel(), minlength=rows * self.prompts).reshape(rows, -1)
        return counts

    def estimate(self, values: np.ndarray) -> Estimate | None:
        """The mean over seeds of the mean over prompts.

        values: float64 [seeds, prompts], NaN where a prompt is left out. A seed without any value is left out; None
        when that leaves none.
        """
        values = np.asarray(values, dtype=np.float64)
        present = ~np.isnan(values)
        values, present = values[present.any(axis=1)], present[present.any(axis=1)]
        if not len(values):
            return None
        by_seed = np.nanmean(values, axis=1)
        # Deviations from the mean keep single precision exact enough.
        deviations = np.where(present, values - by_seed[:, None], 0.0).astype(np.float32)
        sums = self.counts @ deviations.T
        numbers = self.counts @ present.T.astype(np.float32) if not present.all() else np.float32(self.prompts)
        with np.errstate(invalid="ignore"):  # a resample without any of the prompts that have a value
            samples = (by_seed + (sums / numbers).astype(np.float64)).mean(axis=1)
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.nanpercentile(samples, [tail, 100 - tail])
        return Estimate(
            value=float(by_seed.mean()),
            low=float(low),
            high=float(high),
            by_seed=tuple(float(mean) for mean in by_seed),
            samples=samples,
        )


def on_front(points: np.ndarray) -> np.ndarray:
    """Which points no other point beats: bool [..., n] for float64 [..., n, 2].

    A point is beaten by one that is at least as high in both coordinates and higher in one.
    """
    own, other = points[..., :, None, :], points[..., None, :, :]
    beaten = np.all(other >= own, axis=-1) & np.any(other > own, axis=-1)
    return np.logical_not(np.any(beaten, axis=-1))
