"""Percentile bootstrap of means over held-out prompts, paired by prompt. Pure functions."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
CHUNK = 500
"""Resamples per batch, which bounds memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """Mean over seeds and prompts with its interval, in the unit of the values."""

    value: float
    low: float
    """Lower end of the 95 % interval over resampled prompts."""
    high: float
    """Upper end of that interval."""
    by_seed: tuple[float, ...]
    """Mean over prompts, by seed."""
    samples: np.ndarray
    """float64 [resamples]: mean over seeds and resampled prompts."""

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds. None for one seed."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else None


class Bootstrap:
    """Deterministic resamples of a fixed list of prompts.

    Resamples prompts, not replies. All arms and seeds share the drawn prompts, so prompt difficulty cancels in a
    difference.
    """

    def __init__(self, prompts: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.prompts, self.resamples, self._seed = prompts, resamples, seed

    @cached_property
    def counts(self) -> np.ndarray:
        """float32 [resamples, prompts]: count of each prompt in a resample. A row sums to the number of prompts."""
        generator = np.random.default_rng(self._seed)
        counts = np.empty((self.resamples, self.prompts), dtype=np.float32)
        for begin in range(0, self.resamples, CHUNK):
            rows = min(CHUNK, self.resamples - begin)
            drawn = generator.integers(self.prompts, size=(rows, self.prompts))
            drawn += np.arange(rows)[:, None] * self.prompts  # offset each row, so that one bincount covers all
            counts[begin : begin + rows] = np.bincount(drawn.ravel(), minlength=rows * self.prompts).reshape(rows, -1)
        return counts

    def estimate(self, values: np.ndarray) -> Estimate | None:
        """Return the mean over seeds of the mean over prompts, with its interval.

        values: float64 [seeds, prompts], NaN for excluded prompts. Seeds without values are excluded. Returns None if
        no seed remains.
        """
        values = np.asarray(values, dtype=np.float64)
        present = ~np.isnan(values)
        values, present = values[present.any(axis=1)], present[present.any(axis=1)]
        if not len(values):
            return None
        by_seed = np.nanmean(values, axis=1)
        # Subtracting the mean keeps float32 sums precise.
        deviations = np.where(present, values - by_seed[:, None], 0.0).astype(np.float32)
        sums = self.counts @ deviations.T
        numbers = self.counts @ present.T.astype(np.float32) if not present.all() else np.float32(self.prompts)
        with np.errstate(invalid="ignore"):  # a resample may contain no prompt with a value
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
    """Return the points on the Pareto front: bool [..., n] for float64 [..., n, 2].

    A point is off the front if another is at least as high in both coordinates and higher in one.
    """
    own, other = points[..., :, None, :], points[..., None, :, :]
    beaten = np.all(other >= own, axis=-1) & np.any(other > own, axis=-1)
    return np.logical_not(np.any(beaten, axis=-1))
