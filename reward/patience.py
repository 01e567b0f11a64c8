"""How long to wait before a remote rater is asked again. Pure: the caller has the clock and the dice."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def pause(attempt: int, draw: float, *, first: float, longest: float, after: float | None = None) -> float:
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
