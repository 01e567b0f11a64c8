"""Sums that parts of a batch report and that add up to the numbers of the whole, whatever the split."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class StepMetrics:
    """Weighted sums and largest values by name."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    """name → (sum, weight); the mean is their quotient."""
    largest: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: float, weight: float = 0.0) -> None:
        """weight 0 for quantities that add up, such as parts of a loss."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + total, before[1] + weight)

    def see(self, name: str, value: float) -> None:
        # np.maximum lets not-a-number through, where Python's max may drop it.
        self.largest[name] = float(np.maximum(value, self.largest.get(name, value)))

    def merge(self, other: "StepMetrics") -> None:
        for name, (total, weight) in other.sums.items():
            self.add(name, total, weight)
        for name, value in other.largest.items():
            self.see(name, value)

    def total(self, name: str) -> float | None:
        """None when nothing was reported under the name."""
        return self.sums[name][0] if name in self.sums else None

    def mean(self, name: str) -> float | None:
        total, weight = self.sums.get(name, (0.0, 0.0))
        return total / weight if weight else None


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a rank saw of a step. `tally` is its own; `skipped` and `gradient_norm` are those of the whole group."""

    tally: StepMetrics
    gradient_norm: float
    """Before clipping; not finite in a step that was skipped."""
    learning_rate: float
    skipped: bool
    """The optimiser did not move: a loss or a gradient of some rank was not finite."""
    finite: bool
    """Whether this rank's own losses were."""
