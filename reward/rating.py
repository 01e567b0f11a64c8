"""Asks the raters about replies: those of this process one after another, judges elsewhere meanwhile. No Ray."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from reward.rater import Missing, Rated, Rater, Score, Scorecard, SpokenReply
from speech.acoustics import measures
from speech.records import Finish, Reply

HEARD = "heard"
"""The detail under which a rater notes the words that it heard; they are compared with the text."""


def unfit(reply: Reply) -> Missing | None:
    """Why a reply is not scored like a finished one (method §7, rule 5): truncated or malformed replies stay
    unscored."""
    if reply.finish == Finish.LENGTH:
        return Missing("truncated reply")
    if reply.finish == Finish.ABORTED:
        return Missing("aborted reply")
    if reply.defect is not None:
        return Missing("malformed reply")
    return None


def cards(raters: Sequence[Rater], spoken: Sequence[SpokenReply], seconds: float) -> list[Scorecard]:
    """A card for each reply. seconds: what batch raters get. A rater that raises, or gives what is no finite number,
    gives Missing (method §7, rule 1)."""
    reasons = [unfit(one.reply) for one in spoken]
    fit = [one for one, reason in zip(spoken, reasons, strict=True) if reason is None]
    rated = iter(_rate(raters, fit, seconds))
    return [
        _card(one, {rater.name: Rated(score=reason) for rater in raters} if reason else next(rated))
        for one, reason in zip(spoken, reasons, strict=True)
    ]


def _card(spoken: SpokenReply, rated: Mapping[str, Rated]) -> Scorecard:
    details = {"text": spoken.text}
    for one in rated.values():
        details |= _words(one.details)
    whole = spoken.waveform if unfit(spoken.reply) is None else None
    return Scorecard(
        scores={name: one.score for name, one in rated.items()},
        details=details,
        seconds=spoken.waveform.seconds if spoken.waveform else 0.0,
        measures=measures(whole, spoken.text, details.get(HEARD)) if whole is not None else {},
    )


def _rate(raters: Sequence[Rater], spoken: Sequence[SpokenReply], seconds: float) -> list[dict[str, Rated]]:
    """What each rater says of each reply, by name, in the order of the raters."""
    elsewhere = [rater for rater in raters if hasattr(rater, "rate_all")]
    here = [rater for rater in raters if not hasattr(rater, "rate_all")]
    if not spoken:
        return []
    with ThreadPoolExecutor(max(1, len(elsewhere)), thread_name_prefix="judge") as threads:
        asked = {rater.name: threads.submit(_batch, rater, spoken, seconds) for rater in elsewhere}
        # Reply by reply: raters of one process may share what they heard of it.
        found = [{rater.name: _one(rater, reply) for rater in here} for reply in spoken]
        for name, answers in asked.items():
            for of_reply, rated in zip(found, answers.result(), strict=True):
                of_reply[name] = rated
    return [{rater.name: of_reply[rater.name] for rater in raters} for of_reply in found]


def _one(rater: Rater, spoken: SpokenReply) -> Rated:
    try:
        score = _checked(rater.name, rater.rate(spoken))
        return Rated(score=score, details=rater.detail(spoken) if hasattr(rater, "detail") else {})
    except Exception as error:  # whatever a rater raises, its score is missing and the run goes on
        missing = Missing(f"{rater.name} raised {type(error).__name__}", fault="rater")
        return Rated(score=missing, details={f"{rater.name}_error": str(error)})


def _batch(rater: Rater, spoken: Sequence[SpokenReply], seconds: float) -> list[Rated]:
    try:
        rated = rater.rate_all(spoken, seconds)  # type: ignore[attr-defined]  # of those that rate a batch
        if len(rated) != len(spoken):
            raise ValueError(f"{len(rated)} answers to {len(spoken)} replies")
    except Exception as error:  # its words are not kept: a judge has a key to tell
        return [Rated(score=Missing(f"{rater.name} raised {type(error).__name__}", fault="rater")) for _ in spoken]
    return [Rated(score=_checked(rater.name, one.score), details=one.details) for one in rated]


def _checked(name: str, score: object) -> Score:
    """What a rater gave: a finite number or Missing. Anything else is a failure of the rater."""
    if isinstance(score, Missing):
        sound = isinstance(score.reason, str) and score.fault in ("reply", "rater")
        return score if sound else Missing(f"{name} gave no reason", fault="rater")
    try:
        # A truth value is no score, whatever Python makes of it.
        if not isinstance(score, bool) and isinstance(score, numbers.Real) and math.isfinite(score):
            return float(score)
    except (OverflowError, ValueError, TypeError):
        pass  # larger than any float
    return Missing(f"{name} gave no finite number", fault="rater")


def _words(details: Mapping) -> dict[str, str]:
    """What a rater noted, as text that can be stored: a judge's answer may hold half a character."""
    return {str(key): str(value).encode(errors="replace").decode() for key, value in details.items()}


def added(counters: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Counters by rater, of several servers, as one."""
    total: dict[str, dict[str, float]] = {}
    for by_rater in counters:
        for name, counted in by_rater.items():
            of_rater = total.setdefault(name, {})
            for what, number in counted.items():
                of_rater[what] = of_rater.get(what, 0) + number
    return total
