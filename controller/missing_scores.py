"""Stops a run if a rater fails to give too many scores. Pure.

Single missing scores are tolerated: the reply leaves its group's statistics (method §7, rule 1). A run with most
scores missing would silently learn from the few replies that a failing judge happened to rate.
"""

from collections import Counter, deque
from collections.abc import Iterable

from reward.types import MissingScore, Scorecard

MAX_REASONS = 3
"""Number of reasons that the error names."""


class TooManyMissingScores(RuntimeError):
    """A rater gives too few scores to learn from."""


class MissingScoreLimit:
    """Checks each rater over a sliding window of iterations."""

    def __init__(self, max_rate: float, window: int) -> None:
        """
        Args:
            max_rate: Largest share of missing scores, in [0, 1]; 1 never stops a run.
            window: Number of iterations. The first check comes after so many, so that a temporary failure passes.
        """
        self._max_rate, self._window = max_rate, window
        self._iterations: deque[dict[str, Counter[str | None]]] = deque(maxlen=window)

    def add(self, cards: Iterable[Scorecard]) -> None:
        """Add the scorecards of an iteration. Raise TooManyMissingScores.

        Scores missing by fault of the reply (truncated, malformed, without speech) do not count.
        """
        seen: dict[str, Counter[str | None]] = {}
        for card in cards:
            for name, score in card.scores.items():
                if not isinstance(score, MissingScore):
                    seen.setdefault(name, Counter())[None] += 1
                elif score.fault == "rater":
                    seen.setdefault(name, Counter())[score.reason] += 1
        self._iterations.append(seen)
        if len(self._iterations) == self._window:
            for name in dict.fromkeys(name for seen in self._iterations for name in seen):
                self._check(name)

    def shares(self) -> dict[str, float]:
        """Return the share of scores missing by fault of each rater, over the window."""
        names = dict.fromkeys(name for seen in self._iterations for name in seen)
        return {name: self._share(self._counted(name)) for name in names}

    def _counted(self, name: str) -> Counter[str | None]:
        """Return the number of scores by reason for being missing. Present scores are under None."""
        return sum((seen.get(name, Counter()) for seen in self._iterations), Counter())

    @staticmethod
    def _share(counted: Counter[str | None]) -> float:
        return (counted.total() - counted[None]) / counted.total()

    def _check(self, name: str) -> None:
        counted = self._counted(name)
        if self._share(counted) <= self._max_rate:
            return
        reasons = [(reason, count) for reason, count in counted.most_common() if reason is not None]
        listed = ", ".join(f"{reason} ({count})" for reason, count in reasons[:MAX_REASONS])
        missing = counted.total() - counted[None]
        window = f"{self._window} iterations" if self._window > 1 else "iteration"
        raise TooManyMissingScores(
            f"rater {name!r} failed to give {missing} of {counted.total()} scores ({self._share(counted):.0%}) in the "
            f"last {window}; reward.max_missing_rate allows {self._max_rate:g}. Most common reasons: {listed}. "
            "Check that the rater is up and answers correctly, then continue with `duet train --resume RUN`, or "
            "increase reward.max_missing_rate"
        )
