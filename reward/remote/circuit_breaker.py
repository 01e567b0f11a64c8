"""Circuit breaker for a remote rater (Nygard, Release It!), and the Retry-After header.

    closed ──`failures` in a row──▶ open ──after `open_s`, the next call probes──▶ half-open ──success──▶ closed
                                      ▲                                                │
                                      └────────────────────failure─────────────────────┘

Each call acquires a permit and records its outcome with it. An outcome for a permit from before the last change of
state is ignored. Pure: the caller supplies the clock.
"""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum


class CircuitState(StrEnum):
    CLOSED = "closed"
    """All calls are allowed."""
    OPEN = "open"
    """No calls are allowed."""
    HALF_OPEN = "half-open"
    """One call probes the rater; other calls wait for its outcome."""


class CircuitDenial(StrEnum):
    """Why a permit is denied."""

    OPEN = "open"
    PROBING = "probing"
    """Another call is probing the rater; try again in a moment."""


class CircuitBreaker:
    """The circuit breaker of one rater."""

    def __init__(self, failures: int, open_s: float) -> None:
        """Create a closed breaker.

        Args:
            failures: Consecutive failures that open the circuit.
            open_s: Seconds that it stays open before a call may probe the rater.
        """
        self._max_failures, self._open_s = failures, open_s
        self.state = CircuitState.CLOSED
        self.openings = 0
        self._num_failures = 0
        self._open_until = 0.0
        self._epoch = 0

    def acquire(self, now: float) -> int | CircuitDenial:
        """Return a permit for one call, or why there is none. Every permit needs one `record`."""
        if self.state == CircuitState.CLOSED:
            return self._epoch
        if self.state == CircuitState.HALF_OPEN:
            return CircuitDenial.PROBING
        if now < self._open_until:
            return CircuitDenial.OPEN
        self._set_state(CircuitState.HALF_OPEN)
        return self._epoch

    def record(self, permit: int, alive: bool | None, now: float) -> None:
        """Record the outcome of a call. alive: False if the rater seems to be down, None if unknown."""
        if permit != self._epoch:
            return
        if alive:
            self._num_failures = 0
            if self.state == CircuitState.HALF_OPEN:
                self._set_state(CircuitState.CLOSED)
        elif alive is None:
            if self.state == CircuitState.HALF_OPEN:  # the next call probes, without delay
                self._open_until = now
                self._set_state(CircuitState.OPEN)
        else:
            self._num_failures += 1
            if self.state == CircuitState.HALF_OPEN or self._num_failures >= self._max_failures:
                self._open_until = now + self._open_s
                self.openings += 1
                self._set_state(CircuitState.OPEN)

    def _set_state(self, state: CircuitState) -> None:
        self.state = state
        self._num_failures = 0
        self._epoch += 1


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the delay in a Retry-After header (RFC 9110 §10.2.3: seconds or a date), in seconds; None if invalid.

    Args:
        now: Current time, with a time zone.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
        return seconds if math.isfinite(seconds) else None
    try:
        then = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if then.tzinfo is None:  # "-0000": UTC, zone unknown
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - now).total_seconds())
