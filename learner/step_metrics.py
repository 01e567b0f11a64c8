"""Metrics of a training step that add up over micro-batches and ranks, however the batch is split."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class StepMetrics:
    """Weighted sums and maxima by name."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    """name → (sum, weight); the mean is their quotient."""
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: float, weight: float = 0.0) -> None:
        """Add to a sum. weight: 0 for quantities that have no mean, such as parts of a loss."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + total, before[1] + weight)

    def update_max(self, name: str, value: float) -> None:
        # np.maximum keeps NaN; Python's max may drop it.
        self.maxima[name] = float(np.maximum(value, self.maxima.get(name, value)))

    def merge(self, other: "StepMetrics") -> None:
        for name, (total, weight) in other.sums.items():
            self.add(name, total, weight)
        for name, value in other.maxima.items():
            self.update_max(name, value)

    def total(self, name: str) -> float | None:
        """Return a sum; None if nothing was added under the name."""
        return self.sums[name][0] if name in self.sums else None

    def mean(self, name: str) -> float | None:
        """Return a weighted mean; None if the weight is 0."""
        total, weight = self.sums.get(name, (0.0, 0.0))
        return total / weight if weight else None


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One rank's report of a step. `skipped` and `gradient_norm` are the same on all ranks."""

    metrics: StepMetrics
    """Of this rank's items."""
    gradient_norm: float
    """Before clipping; not finite if the step was skipped."""
    learning_rate: float
    skipped: bool
    """True if the optimizer took no step, because a loss or gradient of some rank was not finite."""
    finite: bool
    """True if this rank's own losses were finite."""
