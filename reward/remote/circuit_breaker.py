"""When a remote rater is not asked at all: a circuit breaker (Nygard, Release It!). Pure: the caller has the clock.

    closed ──`failures` in a row──▶ open ──after `seconds`, the next to ask tries──▶ half-open ──answer──▶ closed
                                      ▲                                                  │
                                      └─────────────────────failure──────────────────────┘

Whoever may ask gets a ticket and reports with it. A report on a ticket from before the last change of state says
nothing about the rater as it is now, and is passed over.

How long to wait before a remote rater is asked again. Pure: the caller has the clock and the dice.
"""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum


class CircuitState(StrEnum):
    CLOSED = "closed"
    """Everybody may ask."""
    OPEN = "open"
    """Nobody may."""
    HALF_OPEN = "half-open"
    """One is asking; the others wait for what comes of it."""


class CircuitPermit(StrEnum):
    """Why there is no ticket."""

    REFUSED = "refused"
    TRIED = "tried"
    """Somebody is finding out; ask again in a moment."""


class CircuitBreaker:
    """The breaker of one rater."""

    def __init__(self, failures: int, seconds: float) -> None:
        """failures: in a row, until it opens. seconds: until somebody may try again."""
        self._failures, self._seconds = failures, seconds
        self.state = CircuitState.CLOSED
        self.openings = 0
        self._in_a_row = 0
        self._until = 0.0
        self._epoch = 0

    def enter(self, now: float) -> int | CircuitPermit:
        """A ticket to ask with; every ticket must be reported on."""
        if self.state == CircuitState.CLOSED:
            return self._epoch
        if self.state == CircuitState.HALF_OPEN:
            return CircuitPermit.TRIED
        if now < self._until:
            return CircuitPermit.REFUSED
        self._become(CircuitState.HALF_OPEN)
        return self._epoch

    def report(self, ticket: int, alive: bool | None, now: float) -> None:
        """What came of it. alive: False when the rater seems to be down, None when it was not found out."""
        if ticket != self._epoch:
            return
        if alive:
            self._in_a_row = 0
            if self.state == CircuitState.HALF_OPEN:
                self._become(CircuitState.CLOSED)
        elif alive is None:
            if self.state == CircuitState.HALF_OPEN:  # the next one tries, at once
                self._until = now
                self._become(CircuitState.OPEN)
        else:
            self._in_a_row += 1
            if self.state == CircuitState.HALF_OPEN or self._in_a_row >= self._failures:
                self._until = now + self._seconds
                self.openings += 1
                self._become(CircuitState.OPEN)

    def _become(self, state: CircuitState) -> None:
        self.state = state
        self._in_a_row = 0
        self._epoch += 1


def backoff(attempt: int, draw: float, *, first: float, longest: float, after: float | None = None) -> float:
    """Seconds before the next attempt: exponential back-off, draw · min(longest, first · 2^(attempt − 1)).

    attempt: how many were made, from 1. draw: uniform in [0, 1). after: what the rater asked for; the pause is then on
    top of it, so that not all who were sent away come back at once. (Brooker 2015, AWS Architecture Blog, "Exponential
    Backoff And Jitter".)
    """
    highest = min(longest, first * 2.0 ** min(attempt - 1, 64))
    return (after or 0.0) + draw * highest


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 §10.2.3: seconds or a date); None when it says nothing.

    now: with a time zone.
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
    if then.tzinfo is None:  # "-0000": in UTC, place unknown
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - now).total_seconds())
