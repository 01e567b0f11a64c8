"""How many rollout workers there should be: what was asked for, or a rule that watches the learner wait. Pure."""

from collections import deque
from collections.abc import Mapping
from statistics import fmean


def target_sizes(content: object, largest: Mapping[str, int]) -> dict[str, int]:
    """Members by pool from a request, {"kind": "scale", "value": {"rollout": 3}}. Raises ValueError.

    largest: the most members that a pool can use, by name of the pool; also says which pools there are.
    """
    value = content.get("value") if isinstance(content, dict) else None
    if not isinstance(value, dict) or not value:
        raise ValueError(f'{content!r} names no pool; expected {{"kind": "scale", "value": {{"rollout": 3}}}}')
    for pool, members in value.items():
        if pool not in largest:
            raise ValueError(f"there is no pool {pool!r}; pools that grow and shrink: {', '.join(largest)}")
        if isinstance(members, bool) or not isinstance(members, int) or not 1 <= members <= largest[pool]:
            raise ValueError(f"{pool}={members!r} is not possible; allowed: 1 to {largest[pool]}")
    return dict(value)


class AutoScaler:
    """Keeps the learner's wait below a share of the iteration by adding workers, and lets go of those it can spare.

    The wait is the time of sampling over the time of the whole iteration, mean of the last few iterations. Sampling is
    taken to get faster in proportion to the workers: a worker leaves only when the wait would stay well below the share
    without it, so that the rule does not swing. After each change it looks at new iterations only.
    """

    def __init__(self, *, share: float, most: int, window: int = 3, slack: float = 0.8) -> None:
        """share: of the iteration that the learner may wait. most: workers at the most. window: iterations looked at.
        slack: a worker leaves when the wait without it would be below slack · share."""
        self._share, self._most, self._slack = share, most, slack
        self._waits: deque[tuple[float, float]] = deque(maxlen=window)

    def decide(self, workers: int, rollout: float, total: float) -> int:
        """How many there should be after an iteration of `total` seconds, of which `rollout` went into sampling."""
        if total <= 0:
            return workers
        self._waits.append((rollout, total))
        if len(self._waits) < (self._waits.maxlen or 1):
            return workers
        waited, whole = (fmean(column) for column in zip(*self._waits, strict=True))
        others = whole - waited
        if waited / whole > self._share and workers < self._most:
            return self._changed(workers + 1)
        if workers > 1:
            alone = waited * workers / (workers - 1)
            if alone / (alone + others) < self._slack * self._share:
                return self._changed(workers - 1)
        return workers

    def _changed(self, workers: int) -> int:
        self._waits.clear()
        return workers
