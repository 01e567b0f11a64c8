"""How many scores may be missing by fault of a rater before the run stops. Pure.

Missing scores are borne: the reply leaves its group's statistics (method §7, rule 1). But a run most of whose scores
are missing learns from the few replies that a failing judge happened to rate, and says nothing about it.
"""

from collections import Counter, deque
from collections.abc import Iterable

from reward.types import MissingScore, Scorecard

REASONS_TOLD = 3


class TooManyMissingScores(RuntimeError):
    """A rater gives so few scores that there is nothing to learn from."""


class MissingScoreLimit:
    """Watches each rater by itself over a sliding window of iterations."""

    def __init__(self, limit: float, window: int) -> None:
        """limit: largest share, in [0, 1]; 1 never stops a run. window: iterations; nothing is decided before there
        were so many, so that a failure that passes is outlived."""
        self._limit, self._window = limit, window
        self._iterations: deque[dict[str, Counter[str | None]]] = deque(maxlen=window)

    def see(self, cards: Iterable[Scorecard]) -> None:
        """Takes an iteration's cards. Raises TooManyMissing.

        A reply that there was nothing to rate in (truncated, malformed, without speech) says nothing about a rater.
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
        """Share of scores missing by its own fault, by rater, over the iterations in the window."""
        names = dict.fromkeys(name for seen in self._iterations for name in seen)
        return {name: self._share(self._counted(name)) for name in names}

    def _counted(self, name: str) -> Counter[str | None]:
        """Scores by reason for being missing; those that are there under None."""
        return sum((seen.get(name, Counter()) for seen in self._iterations), Counter())

    @staticmethod
    def _share(counted: Counter[str | None]) -> float:
        return (counted.total() - counted[None]) / counted.total()

    def _check(self, name: str) -> None:
        counted = self._counted(name)
        if self._share(counted) <= self._limit:
            return
        reasons = [(reason, count) for reason, count in counted.most_common() if reason is not None]
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons[:REASONS_TOLD])
        lost, over = counted.total() - counted[None], f"{self._window} iterations" if self._window > 1 else "iteration"
        raise TooManyMissingScores(
            f"rater {name!r} failed to give {lost} of {counted.total()} scores ({self._share(counted):.0%}) in the "
            f"last {over}, more than reward.max_missing_rate = {self._limit:g} allows; most common reasons: {told}; "
            "see "
            "that it is up and answers as it should, then go on with `duet train --resume RUN`, or raise "
            "reward.max_missing_rate"
        )
