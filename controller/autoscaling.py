"""Target number of rollout workers: from a request, or from the learner's wait. Pure."""

from collections import deque
from collections.abc import Mapping
from statistics import fmean


def target_sizes(content: object, max_sizes: Mapping[str, int]) -> dict[str, int]:
    """Return target sizes by pool from a request, {"kind": "scale", "value": {"rollout": 3}}. Raise ValueError for an
    invalid one.

    max_sizes: largest useful size of each pool; its keys are the pools of the run.
    """
    value = content.get("value") if isinstance(content, dict) else None
    if not isinstance(value, dict) or not value:
        raise ValueError(f'{content!r} names no pool; expected {{"kind": "scale", "value": {{"rollout": 3}}}}')
    for pool, size in value.items():
        if pool not in max_sizes:
            raise ValueError(f"unknown pool {pool!r}; allowed: {', '.join(max_sizes)}")
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= max_sizes[pool]:
            raise ValueError(f"{pool}={size!r} is out of range; allowed: 1 to {max_sizes[pool]}")
    return dict(value)


class AutoScaler:
    """Adds workers while the learner waits for more than a share of the iteration, and removes workers it can spare.

    The wait is the time of generation over the time of the iteration, averaged over a window of iterations. Generation
    time is assumed inversely proportional to the number of workers. A worker is removed only if the wait would stay
    well below the target without it, so that the size does not oscillate. Each change starts a new window.
    """

    def __init__(self, *, target_wait: float, max_workers: int, window: int = 3, slack: float = 0.8) -> None:
        """
        Args:
            target_wait: Share of the iteration that the learner may wait, in [0, 1].
            max_workers: Largest number of workers.
            window: Number of iterations to average.
            slack: A worker is removed if the wait without it stays below slack · target_wait.
        """
        self._target_wait, self._max_workers, self._slack = target_wait, max_workers, slack
        self._waits: deque[tuple[float, float]] = deque(maxlen=window)

    def decide(self, workers: int, rollout: float, total: float) -> int:
        """Return the target number of workers after an iteration of `total` seconds with `rollout` seconds of
        generation."""
        if total <= 0:
            return workers
        self._waits.append((rollout, total))
        if len(self._waits) < (self._waits.maxlen or 1):
            return workers
        wait, iteration = (fmean(column) for column in zip(*self._waits, strict=True))
        other = iteration - wait
        if wait / iteration > self._target_wait and workers < self._max_workers:
            return self._changed(workers + 1)
        if workers > 1:
            longer = wait * workers / (workers - 1)
            if longer / (longer + other) < self._slack * self._target_wait:
                return self._changed(workers - 1)
        return workers

    def _changed(self, workers: int) -> int:
        self._waits.clear()
        return workers
