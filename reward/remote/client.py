"""Base of remote raters: time limits, retries, circuit breaker and cache. A failure gives MissingScore, never a number.

A remote rater is a `RemoteJudge` that implements `ask`: one attempt at one reply. The base class does the rest.

    reply ──▶ cache ──▶ semaphore (concurrency) ──▶ breaker ──▶ ask (timeout) ──▶ parse ──▶ score, into the cache
                                                       ▲            │ retryable failure
                                                       └── pause ◀──┘ at most `retries` times, within `deadline`

All times come from the event loop, so tests run on a loop with a simulated clock.
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

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_any, wait_exponential

from common.errors import InputError
from reward.remote.cache import AnswerCache, CachedAnswer, cache_key
from reward.remote.circuit_breaker import CircuitBreaker, CircuitDenial, CircuitState
from reward.types import MissingScore, RaterOutput, Score, SpokenReply

MAX_REASON_CHARS = 2000
"""Characters kept of a rater's explanation."""


class FailureReason(StrEnum):
    """Reason for a missing score. Labels a metric; the details are on the scorecard."""

    TIMEOUT = "timeout"
    CONNECTION = "connection failed"
    SERVER = "server error"
    LIMITED = "rate limited"
    REFUSED = "refused"
    """The rater rejects the question for good: wrong key, address or request."""
    NOT_UNDERSTOOD = "not understood"
    """The answer does not have the expected format."""
    NOT_A_NUMBER = "not a number"
    OUT_OF_RANGE = "out of range"
    OTHER_VERSION = "other version"
    """The rater's version is not the configured one."""
    UNAVAILABLE = "judge unavailable"
    """The circuit is open, so the rater was not called."""


class JudgeFailure(Exception):
    """An attempt without a score."""

    def __init__(
        self,
        reason: FailureReason | str,
        note: str,
        *,
        retryable: bool = False,
        down: bool = False,
        retry_after_s: float | None = None,
        usage: object = None,
    ) -> None:
        """Create a failure.

        Args:
            note: What happened, for people. Must not contain a secret.
            retryable: True if a later attempt at the same question may succeed.
            down: True if the rater itself seems to be down.
            retry_after_s: Delay that the rater asked for.
            usage: As `JudgeAnswer.usage`: an unusable answer still has a price.
        """
        super().__init__(f"{reason}: {note}")
        self.reason, self.note, self.usage = str(reason), note, usage
        self.retryable, self.down, self.retry_after_s = retryable, down, retry_after_s


def parse_number(score: object, reason: object, lowest: float, highest: float) -> CachedAnswer:
    """Return the answer if the score is a finite number on the scale and the reason text or None.

    Text, booleans and null are not converted; a number off the scale is not clipped. Raise JudgeFailure otherwise.
    """
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise JudgeFailure(FailureReason.NOT_A_NUMBER, f"the score is of type {type(score).__name__}")
    if isinstance(score, float) and math.isnan(score):
        raise JudgeFailure(FailureReason.NOT_A_NUMBER, "the score is NaN")
    if not lowest <= score <= highest:
        raise JudgeFailure(FailureReason.OUT_OF_RANGE, f"the score is outside [{lowest:g}, {highest:g}]")
    if reason is not None and not isinstance(reason, str):
        raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the reason is of type {type(reason).__name__}")
    # JSON allows lone surrogates, Parquet does not.
    text = (reason or "")[:MAX_REASON_CHARS].encode("utf-8", "replace").decode("utf-8")
    return CachedAnswer(score=float(score), reason=text)


Result = TypeVar("Result")


PROBE_POLL_S = 0.05
"""Poll interval of calls that wait for another call's probe."""


USAGE = ("input_tokens", "output_tokens", "cost")
"""Prompt tokens, completion tokens and price of an answer, in the rater's currency."""


MAX_USAGE = 1e9
"""Largest plausible value for one answer; larger ones are ignored."""


GRACE_S = 5.0
"""Time beyond a batch's limit before the calling thread gives up on it."""


@dataclass(frozen=True, kw_only=True)
class RemoteJudgeConfig:
    """Limits for a remote rater. Each reward server has its own connections, breaker and cache."""

    name: str
    version: str
    """Part of the cache key: change it whenever the rater changes."""
    lowest: float = 1.0
    highest: float = 5.0
    """The scale; a score outside it is a failure."""
    listens: bool = True
    """True if the rater gets the waveform. It is then not called for replies without speech."""
    timeout: float = 30.0
    """Seconds per attempt."""
    deadline: float = 120.0
    """Seconds per reply, including retries and pauses."""
    retries: int = 3
    """Attempts after the first."""
    first_pause: float = 0.5
    """Maximum seconds before the second attempt; doubles with every attempt."""
    longest_pause: float = 20.0
    """Maximum seconds before an attempt."""
    concurrency: int = 8
    """Concurrent questions per reward server."""
    breaker_failures: int = 8
    """Consecutive failures that open the circuit."""
    breaker_seconds: float = 30.0
    """Seconds that the circuit stays open."""
    cache_size: int = 100_000
    """Maximum number of cached answers."""
    seed: int = 0
    """Seed of the pauses' jitter."""
    required: ClassVar[tuple[str, ...]] = ("name", "version")
    """Arguments without a default."""

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """Raise InputError for an unknown argument, a missing one, or an invalid value."""
        known = [f.name for f in fields(cls)]
        for name in arguments:
            if name not in known:
                raise InputError(f"unknown argument {name!r}; allowed: {', '.join(known)}")
        for name in cls.required:
            if name not in arguments:
                raise InputError(f"argument {name!r} is missing")
        return cls(**arguments)

    def __post_init__(self) -> None:
        for name in ("name", "version"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: {getattr(self, name)!r} must be non-empty text")
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
    """Counts for one rater since its server started; monotonic."""

    calls: int = 0
    """Attempts, including retries."""
    retries: int = 0
    cache_hits: int = 0
    breaker_openings: int = 0
    unavailable: int = 0
    """Replies not sent because the circuit was open."""
    failures: int = 0
    """Replies without a score."""
    latency_seconds: float = 0.0
    """Sum over all calls."""
    input_tokens: float | None = None
    """Usage as reported by the rater; None until it reports any."""
    output_tokens: float | None = None
    cost: float | None = None

    def add_usage(self, usage: object) -> None:
        """Add the usage reported with an answer. Invalid values are ignored and do not cost the score."""
        for name in USAGE:
            value = usage.get(name) if isinstance(usage, Mapping) else None
            if not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < MAX_USAGE:
                setattr(self, name, (getattr(self, name) or 0.0) + value)


@dataclass(frozen=True, kw_only=True)
class JudgeAnswer:
    """A rater's answer as received, not validated yet."""

    score: object
    reason: object = None
    version: object = None
    """Version that the rater reports; None if it reports none."""
    usage: object = None
    """Usage of the answer: an object with any of the numbers `USAGE`."""


class RemoteJudge(ABC):
    """A rater that may fail, be slow or answer nonsense. It rates many replies concurrently."""

    def __init__(self, settings: RemoteJudgeConfig) -> None:
        self.settings = settings
        self.name, self.version = settings.name, settings.version
        self.cache = AnswerCache(settings.name, settings.version, settings.cache_size)
        self._counters = JudgeCounters()
        self._breaker = CircuitBreaker(settings.breaker_failures, settings.breaker_seconds)
        self._semaphore = asyncio.Semaphore(settings.concurrency)
        self._random = random.Random(settings.seed)
        self._backoff = wait_exponential(multiplier=settings.first_pause, max=settings.longest_pause)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, version {self.version!r})"

    @abstractmethod
    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        """Make one attempt at one reply. Raise JudgeFailure. Neither its note nor the answer may contain a secret."""

    def counters(self) -> dict[str, float]:
        """Return the `JudgeCounters` by name, without unknown ones."""
        counted = asdict(self._counters) | {"breaker_openings": self._breaker.openings}
        return {name: number for name, number in counted.items() if number is not None}

    @property
    def circuit_open(self) -> bool:
        """True while the circuit breaker is open or half-open."""
        return self._breaker.state != CircuitState.CLOSED

    def rate(self, spoken: SpokenReply) -> Score:
        return self.rate_all([spoken], self.settings.deadline)[0].score

    def rate_all(self, spoken: Sequence[SpokenReply], timeout_s: float) -> list[RaterOutput]:
        """See BatchRater. Identical replies are sent once."""
        return _background().run(self.rate_batch(spoken, timeout_s), timeout_s + GRACE_S)

    async def rate_batch(self, spoken: Sequence[SpokenReply], timeout_s: float) -> list[RaterOutput]:
        """Do the same on the running event loop, which must be the same for all calls."""
        batch_end = asyncio.get_running_loop().time() + timeout_s
        keys = [cache_key(self.name, self.version, reply, listens=self.settings.listens) for reply in spoken]
        distinct = dict(zip(keys, spoken, strict=True))
        outputs = await asyncio.gather(*(self._rate_one(key, reply, batch_end) for key, reply in distinct.items()))
        by_key = dict(zip(distinct, outputs, strict=True))
        return [by_key[key] for key in keys]

    async def _rate_one(self, key: bytes, spoken: SpokenReply, batch_end: float) -> RaterOutput:
        if self.settings.listens and spoken.waveform is None:
            return RaterOutput(score=MissingScore("no speech in the reply"))
        answer = self.cache.get(key)
        if answer is not None and self.settings.lowest <= answer.score <= self.settings.highest:
            self._counters.cache_hits += 1
        else:
            try:
                async with self._semaphore:
                    answer = await self._ask_with_retries(spoken, batch_end)
            except JudgeFailure as failure:
                self._counters.failures += 1
                return RaterOutput(
                    score=MissingScore(failure.reason, fault="rater"), details={f"{self.name}_error": failure.note}
                )
            self.cache.put(key, answer)
        return RaterOutput(score=answer.score, details={f"{self.name}_reason": answer.reason} if answer.reason else {})

    async def _ask_with_retries(self, spoken: SpokenReply, batch_end: float) -> CachedAnswer:
        """Ask until there is an answer, a final failure or no time left. batch_end: in the loop's time."""
        s, time = self.settings, asyncio.get_running_loop().time
        end = min(batch_end, time() + s.deadline)
        failure: JudgeFailure | None = None
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, JudgeFailure) and error.retryable),
            # The event loop's clock instead of tenacity's, so that tests can simulate it.
            stop=stop_any(stop_after_attempt(s.retries + 1), lambda state: time() + state.upcoming_sleep >= end),
            wait=self._pause,
            sleep=asyncio.sleep,
            reraise=True,
        )
        async for attempt in retrying:
            # Outside of `attempt`: an open circuit or a passed time limit ends the retries.
            permit = await self._acquire(end)
            if permit is None:
                self._counters.unavailable += failure is None
                raise failure or JudgeFailure(
                    FailureReason.UNAVAILABLE, "the circuit is open after repeated failures; the judge was not asked"
                )
            if time() >= end:
                self._breaker.record(permit, None, time())
                raise failure or JudgeFailure(FailureReason.TIMEOUT, "the time limit passed while the reply was queued")
            self._counters.retries += failure is not None
            with attempt:
                try:
                    return await self._attempt(spoken, permit, end - time())
                except JudgeFailure as error:
                    failure = error
                    raise
        raise AssertionError("the retry loop returns or raises")

    def _pause(self, state: RetryCallState) -> float:
        """Return the seconds before the next attempt: exponential backoff with full jitter.

        The jitter is added to the delay that the rater asked for, so that clients do not all return at the same moment
        (Brooker 2015, AWS Architecture Blog, "Exponential Backoff And Jitter").
        """
        error = state.outcome.exception() if state.outcome is not None else None
        requested = error.retry_after_s if isinstance(error, JudgeFailure) else None
        return (requested or 0.0) + self._random.random() * self._backoff(state)

    async def _acquire(self, end: float) -> int | None:
        """Return a permit of the breaker, waiting for a probe in progress; None if the circuit is open."""
        time = asyncio.get_running_loop().time
        while (permit := self._breaker.acquire(time())) == CircuitDenial.PROBING and time() < end:
            await asyncio.sleep(PROBE_POLL_S)
        return None if isinstance(permit, CircuitDenial) else permit

    async def _attempt(self, spoken: SpokenReply, permit: int, left_s: float) -> CachedAnswer:
        """Make one attempt and record its outcome with the breaker."""
        s, time = self.settings, asyncio.get_running_loop().time
        self._counters.calls += 1
        started, alive = time(), None
        try:
            async with asyncio.timeout(min(s.timeout, left_s)):
                answer = await self.ask(spoken)
            alive = True
            self._counters.add_usage(answer.usage)
            if answer.version is not None and answer.version != self.version:
                reported = answer.version
                reported = reported[:80] if isinstance(reported, str) else f"a {type(reported).__name__}"
                raise JudgeFailure(
                    FailureReason.OTHER_VERSION, f"the rater reports version {reported!r}, not {self.version!r}"
                )
            return parse_number(answer.score, answer.reason, s.lowest, s.highest)
        except TimeoutError:
            # A time limit cut short by the end of the batch says nothing about the rater.
            alive = False if left_s >= s.timeout else None
            raise JudgeFailure(
                FailureReason.TIMEOUT, f"no answer in {min(s.timeout, left_s):.3g} s", retryable=True
            ) from None
        except JudgeFailure as failure:
            alive = not failure.down
            self._counters.add_usage(failure.usage)
            raise
        except Exception as error:  # a bug in `ask`; its message is dropped: it may contain a key
            alive = True
            raise JudgeFailure(
                f"{self.name} raised {type(error).__name__}", "an exception in the rater's own code"
            ) from None
        finally:  # also for a cancelled attempt
            self._counters.latency_seconds += time() - started
            self._breaker.record(permit, alive, time())


@dataclass
class _Background:
    """An event loop in its own thread, so that connections outlive a batch."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        threading.Thread(target=self.loop.run_forever, name="remote raters", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
        """Run a coroutine and wait for its result. Raise TimeoutError."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()


@cache
def _background() -> _Background:
    """Return the event loop shared by all remote raters of this process."""
    return _Background()
