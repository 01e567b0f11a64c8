"""What goes wrong with a remote rater, in a few fixed words, and what counts as an answer. Pure.

What every remote rater goes through: time limits, retries, a breaker, a cache. A failure is Missing, never a number.

A remote rater is a `RemoteJudge` with `ask`: one attempt at one reply. Everything else is here.

    reply ──▶ cache ──▶ turn (concurrency) ──▶ breaker ──▶ ask (timeout) ──▶ strict ──▶ score, into the cache
                                                  ▲            │ failed, and may get better
                                                  └── pause ◀──┘            at most `retries` times, within `deadline`

Time is the event loop's: a loop with a clock of its own tests all of this without waiting.
"""

import asyncio
import math
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from common.errors import InputError
from reward.remote.cache import AnswerCache, CachedAnswer, cache_key
from reward.remote.circuit_breaker import CircuitBreaker, CircuitPermit, CircuitState, backoff
from reward.types import MissingScore, RaterOutput, Score, SpokenReply

LONGEST_REASON = 2000
"""Characters of a rater's own words that are kept."""


class FailureReason(StrEnum):
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


class JudgeFailure(Exception):
    """An attempt that brought no score."""

    def __init__(
        self,
        reason: FailureReason | str,
        note: str,
        *,
        again: bool = False,
        down: bool = False,
        after: float | None = None,
        usage: object = None,
    ) -> None:
        """note: what happened, for people; must hold no secret. again: the same question may get an answer later.
        down: the rater itself seems to be down. after: seconds it asked to be left alone. usage: as
        `JudgeAnswer.usage`, of an answer that is of no use and has to be paid for."""
        super().__init__(f"{reason}: {note}")
        self.reason, self.note, self.again, self.down, self.after = str(reason), note, again, down, after
        self.usage = usage


def parse_number(score: object, reason: object, lowest: float, highest: float) -> CachedAnswer:
    """An answer, if it is one: a finite number within the scale. Text, truth values and null are no numbers, and a
    number off the scale is not moved onto it. reason: text or None. Raises Failure."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise JudgeFailure(FailureReason.NOT_A_NUMBER, f"the score is of type {type(score).__name__}")
    if isinstance(score, float) and math.isnan(score):
        raise JudgeFailure(FailureReason.NOT_A_NUMBER, "the score is NaN")
    if not lowest <= score <= highest:
        raise JudgeFailure(FailureReason.OUT_OF_RANGE, f"the score is outside [{lowest:g}, {highest:g}]")
    if reason is not None and not isinstance(reason, str):
        raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the reason is of type {type(reason).__name__}")
    # Half a surrogate pair is possible in JSON and not in a Parquet file.
    words = (reason or "")[:LONGEST_REASON].encode("utf-8", "replace").decode("utf-8")
    return CachedAnswer(score=float(score), reason=words)


Result = TypeVar("Result")


LOOK_SECONDS = 0.05
"""How often those who wait for somebody else's try look for what came of it."""


USAGE = ("input_tokens", "output_tokens", "cost")
"""Tokens that a rater read and wrote for an answer, and what it charged, in its own currency."""


MOST_USAGE = 1e9
"""Of one answer: more is a mistake."""


GRACE_SECONDS = 5.0
"""How much longer than agreed a batch may take before it is given up from outside."""


@dataclass(frozen=True, kw_only=True)
class RemoteJudgeConfig:
    """How patient to be with a remote rater. Each reward server has its own connections, breaker and cache."""

    name: str
    version: str
    """Part of what an answer is remembered by: change it whenever the rater changes."""
    lowest: float = 1.0
    highest: float = 5.0
    """The scale; a score outside is none."""
    listens: bool = True
    """Whether it is given the waveform. A reply without speech is then not shown to it."""
    timeout: float = 30.0
    """Seconds for one attempt."""
    deadline: float = 120.0
    """Seconds for one reply, retries and pauses included."""
    retries: int = 3
    """Attempts after the first."""
    first_pause: float = 0.5
    """Seconds, at most, before the second attempt; doubles."""
    longest_pause: float = 20.0
    concurrency: int = 8
    """Replies that one reward server asks about at once."""
    breaker_failures: int = 8
    """Failures in a row after which it is left alone."""
    breaker_seconds: float = 30.0
    """For how long."""
    cache_size: int = 100_000
    """Answers that are remembered."""
    seed: int = 0
    """Of the lengths of pauses."""
    needed: ClassVar[tuple[str, ...]] = ("name", "version")
    """What a configuration has to say."""

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Self:
        """Raises InputError for an unknown argument, one that is missing, and an impossible value."""
        known = [f.name for f in fields(cls)]
        for name in arguments:
            if name not in known:
                raise InputError(f"unknown argument {name!r}; allowed: {', '.join(known)}")
        for name in cls.needed:
            if name not in arguments:
                raise InputError(f"argument {name!r} is missing")
        return cls(**arguments)

    def __post_init__(self) -> None:
        for name in ("name", "version"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: {getattr(self, name)!r} must be text, and not empty")
        if not isinstance(self.listens, bool):
            raise InputError(f"listens: {self.listens!r} must be true or false")
        for name, least in (("retries", 0), ("concurrency", 1), ("breaker_failures", 1), ("cache_size", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)!r} must be a whole number, at least {least}")
        for name in ("lowest", "highest", "timeout", "deadline", "first_pause", "longest_pause", "breaker_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
                raise InputError(f"{name}: {value!r} must be a number")
        for name in ("timeout", "deadline", "first_pause", "longest_pause", "breaker_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} must be above 0 seconds")
        if self.lowest >= self.highest:
            raise InputError(f"lowest: {self.lowest} must be below highest, {self.highest}")


@dataclass
class JudgeCounters:
    """What happened with one rater since its server started; none goes down."""

    calls: int = 0
    """Attempts, retries included."""
    retries: int = 0
    cache_hits: int = 0
    breaker_openings: int = 0
    unavailable: int = 0
    """Replies that were not asked about, the breaker being open."""
    failures: int = 0
    """Replies that got no score."""
    latency_seconds: float = 0.0
    """Sum over the calls."""
    input_tokens: float | None = None
    """What the rater says that it read, wrote and charged; None while it has not said."""
    output_tokens: float | None = None
    cost: float | None = None

    def charge(self, usage: object) -> None:
        """Adds what an answer says of its own price. What is no count is passed over: it costs no score."""
        for name in USAGE:
            told = usage.get(name) if isinstance(usage, Mapping) else None
            if not isinstance(told, bool) and isinstance(told, int | float) and 0 <= told < MOST_USAGE:
                setattr(self, name, (getattr(self, name) or 0.0) + told)


@dataclass(frozen=True, kw_only=True)
class JudgeAnswer:
    """What a rater's answer says, not judged yet."""

    score: object
    reason: object = None
    version: object = None
    """Which version it says it is; None when it does not say."""
    usage: object = None
    """What the answer cost: an object with the numbers `USAGE`, all of which may be left out."""


class RemoteJudge(ABC):
    """A rater that may fail, be slow, or answer nonsense. Many replies are asked about at once."""

    def __init__(self, settings: RemoteJudgeConfig) -> None:
        self.settings = settings
        self.name, self.version = settings.name, settings.version
        self.cache = AnswerCache(settings.name, settings.version, settings.cache_size)
        self._counters = JudgeCounters()
        self._breaker = CircuitBreaker(settings.breaker_failures, settings.breaker_seconds)
        self._turns = asyncio.Semaphore(settings.concurrency)
        self._random = random.Random(settings.seed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, version {self.version!r})"

    @abstractmethod
    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        """One attempt at one reply. Raises Failure; its note, and what a rater says, must hold no secret."""

    def counters(self) -> dict[str, float]:
        """`JudgeCounters` by name, without those that are not known."""
        counted = asdict(self._counters) | {"breaker_openings": self._breaker.openings}
        return {name: number for name, number in counted.items() if number is not None}

    @property
    def left_alone(self) -> bool:
        """Whether its breaker keeps it from being asked."""
        return self._breaker.state != CircuitState.CLOSED

    def rate(self, spoken: SpokenReply) -> Score:
        return self.rate_all([spoken], self.settings.deadline)[0].score

    def rate_all(self, spoken: Sequence[SpokenReply], seconds: float) -> list[RaterOutput]:
        """See BatchRater. Replies that are alike are asked about once."""
        return _background().run(self.rate_batch(spoken, seconds), seconds + GRACE_SECONDS)

    async def rate_batch(self, spoken: Sequence[SpokenReply], seconds: float) -> list[RaterOutput]:
        """The same on the running event loop, which must always be the same one."""
        end = asyncio.get_running_loop().time() + seconds
        keys = [cache_key(self.name, self.version, one, listens=self.settings.listens) for one in spoken]
        different = dict(zip(keys, spoken, strict=True))
        rated = await asyncio.gather(*(self._rated(found, one, end) for found, one in different.items()))
        by_key = dict(zip(different, rated, strict=True))
        return [by_key[found] for found in keys]

    async def _rated(self, found: bytes, spoken: SpokenReply, end: float) -> RaterOutput:
        if self.settings.listens and spoken.waveform is None:
            return RaterOutput(score=MissingScore("no speech in the reply"))
        answer = self.cache.get(found)
        if answer is not None and self.settings.lowest <= answer.score <= self.settings.highest:
            self._counters.cache_hits += 1
        else:
            try:
                async with self._turns:
                    answer = await self._persist(spoken, end)
            except JudgeFailure as failure:
                self._counters.failures += 1
                return RaterOutput(
                    score=MissingScore(failure.reason, fault="rater"), details={f"{self.name}_error": failure.note}
                )
            self.cache.put(found, answer)
        return RaterOutput(score=answer.score, details={f"{self.name}_reason": answer.reason} if answer.reason else {})

    async def _persist(self, spoken: SpokenReply, end: float) -> CachedAnswer:
        """Asks until there is an answer or no hope or time for one. end: of the batch, in the loop's time."""
        time = asyncio.get_running_loop().time
        end = min(end, time() + self.settings.deadline)
        failure: JudgeFailure | None = None
        for attempt in range(1, self.settings.retries + 2):
            ticket = await self._enter(end)
            if ticket is None:
                self._counters.unavailable += failure is None
                raise failure or JudgeFailure(FailureReason.UNAVAILABLE, "it failed again and again, and was not asked")
            if time() >= end:
                self._breaker.report(ticket, None, time())
                raise failure or JudgeFailure(FailureReason.TIMEOUT, "its turn did not come before the time was up")
            try:
                self._counters.retries += attempt > 1
                return await self._attempt(spoken, ticket, end - time())
            except JudgeFailure as error:
                failure = error
            s = self.settings
            rest = backoff(
                attempt, self._random.random(), first=s.first_pause, longest=s.longest_pause, after=failure.after
            )
            if not failure.again or attempt > s.retries or time() + rest >= end:
                break
            await asyncio.sleep(rest)
        assert failure is not None
        raise failure

    async def _enter(self, end: float) -> int | None:
        """A ticket of the breaker, once it is known whether there is one; None while the rater is left alone."""
        time = asyncio.get_running_loop().time
        while (ticket := self._breaker.enter(time())) == CircuitPermit.TRIED and time() < end:
            await asyncio.sleep(LOOK_SECONDS)
        return None if isinstance(ticket, CircuitPermit) else ticket

    async def _attempt(self, spoken: SpokenReply, ticket: int, left: float) -> CachedAnswer:
        """One attempt, and what it says about the rater, told to the breaker."""
        s, time = self.settings, asyncio.get_running_loop().time
        self._counters.calls += 1
        started, alive = time(), None
        try:
            async with asyncio.timeout(min(s.timeout, left)):
                said = await self.ask(spoken)
            alive = True
            self._counters.charge(said.usage)
            if said.version is not None and said.version != self.version:
                says = said.version[:80] if isinstance(said.version, str) else f"a {type(said.version).__name__}"
                raise JudgeFailure(
                    FailureReason.OTHER_VERSION, f"it says that it is version {says!r}, not {self.version!r}"
                )
            return parse_number(said.score, said.reason, s.lowest, s.highest)
        except TimeoutError:
            # A time cut short by the end of the batch says nothing about the rater.
            alive = False if left >= s.timeout else None
            raise JudgeFailure(
                FailureReason.TIMEOUT, f"no answer in {min(s.timeout, left):.3g} s", again=True
            ) from None
        except JudgeFailure as failure:
            alive = not failure.down
            self._counters.charge(failure.usage)
            raise
        except Exception as error:  # a fault in `ask`; its words may hold anything, a key included
            alive = True
            raise JudgeFailure(
                f"{self.name} raised {type(error).__name__}", "a fault of the rater's own code"
            ) from None
        finally:  # a cancelled attempt, too
            self._counters.latency_seconds += time() - started
            self._breaker.report(ticket, alive, time())


@dataclass
class _Background:
    """An event loop in a thread of its own, so that connections outlive a batch."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        threading.Thread(target=self.loop.run_forever, name="remote raters", daemon=True).start()

    def run(self, doing: Coroutine[Any, Any, Result], seconds: float) -> Result:
        """Waits for it. Raises TimeoutError."""
        answer = asyncio.run_coroutine_threadsafe(doing, self.loop)
        try:
            return answer.result(seconds)
        finally:
            answer.cancel()


@cache
def _background() -> _Background:
    """The loop of all remote raters of this process."""
    return _Background()
