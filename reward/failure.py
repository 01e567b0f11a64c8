"""What goes wrong with a remote rater, in a few fixed words, and what counts as an answer. Pure."""

import math
from enum import StrEnum

from reward.cache import Answer

LONGEST_REASON = 2000
"""Characters of a rater's own words that are kept."""


class Reason(StrEnum):
    """Why there is no score. Labels a metric; what exactly happened is in the details of the card."""

    TIMEOUT = "timeout"
    CONNECTION = "connection failed"
    SERVER = "server error"
    LIMITED = "rate limited"
    REFUSED = "refused"
    """The rater will not answer this question, now or later: a wrong key, address or request."""
    NOT_UNDERSTOOD = "not understood"
    """The answer is not of the agreed form."""
    NOT_A_NUMBER = "not a number"
    OUT_OF_RANGE = "out of range"
    OTHER_VERSION = "other version"
    """The rater is not the one that the configuration names."""
    UNAVAILABLE = "judge unavailable"
    """It failed again and again, and was not asked."""


class Failure(Exception):
    """An attempt that brought no score."""

    def __init__(
        self,
        reason: Reason | str,
        note: str,
        *,
        again: bool = False,
        down: bool = False,
        after: float | None = None,
        usage: object = None,
    ) -> None:
        """note: what happened, for people; must hold no secret. again: the same question may get an answer later.
        down: the rater itself seems to be down. after: seconds it asked to be left alone. usage: as `Said.usage`, of an
        answer that is of no use and has to be paid for."""
        super().__init__(f"{reason}: {note}")
        self.reason, self.note, self.again, self.down, self.after = str(reason), note, again, down, after
        self.usage = usage


def strict(score: object, reason: object, lowest: float, highest: float) -> Answer:
    """An answer, if it is one: a finite number within the scale. Text, truth values and null are no numbers, and a
    number off the scale is not moved onto it. reason: text or None. Raises Failure."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise Failure(Reason.NOT_A_NUMBER, f"the score is of type {type(score).__name__}")
    if isinstance(score, float) and math.isnan(score):
        raise Failure(Reason.NOT_A_NUMBER, "the score is NaN")
    if not lowest <= score <= highest:
        raise Failure(Reason.OUT_OF_RANGE, f"the score is outside [{lowest:g}, {highest:g}]")
    if reason is not None and not isinstance(reason, str):
        raise Failure(Reason.NOT_UNDERSTOOD, f"the reason is of type {type(reason).__name__}")
    # Half a surrogate pair is possible in JSON and not in a Parquet file.
    words = (reason or "")[:LONGEST_REASON].encode("utf-8", "replace").decode("utf-8")
    return Answer(score=float(score), reason=words)
