"""Limits, retries, breaker and cache of remote raters, on a simulated clock."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from reward.remote.client import FailureReason, JudgeAnswer, JudgeFailure, RemoteJudge, RemoteJudgeConfig, parse_number
from reward.types import MissingScore
from tests.reward.spoken import at_once, spoken

DOWN = JudgeFailure(FailureReason.SERVER, "HTTP 500", retryable=True, down=True)


class Scripted(RemoteJudge):
    """Each attempt takes the next step of the script: an answer, a failure, or a wait of that many seconds before 3."""

    def __init__(self, *script, **settings):
        super().__init__(RemoteJudgeConfig(name="judge", version="1", **settings))
        self.script, self.asked, self.at_once = list(script), [], 0

    async def ask(self, spoken):
        self.asked.append(asyncio.get_running_loop().time())
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.at_once += 1
        self.most = max(getattr(self, "most", 0), self.at_once)
        try:
            await asyncio.sleep(step if isinstance(step, int) else 0.01)
        finally:
            self.at_once -= 1
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, JudgeAnswer) else JudgeAnswer(score=3)


def rate(rater, *replies, seconds=1000.0):
    """Return the scores, and the seconds it took."""
    rated, took = at_once(rater.rate_batch(replies or (spoken(),), seconds))
    return [one.score for one in rated], took


def missing(reason: FailureReason) -> MissingScore:
    return MissingScore(str(reason), fault="rater")


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        ([{"input_tokens": 300, "output_tokens": 12, "cost": 0.5}, {"input_tokens": 100}], (400.0, 12.0, 0.5)),
        ([None, {}], (None, None, None)),
        ([{"input_tokens": "300", "output_tokens": True, "cost": -1}, {"cost": float("nan")}], (None, None, None)),
        ([{"cost": float("inf"), "output_tokens": 0}, [300]], (None, 0.0, None)),
    ],
)
def test_what_an_answer_says_of_its_price_is_added_up_and_costs_no_score(told, counted):
    rater = Scripted(*(JudgeAnswer(score=4, usage=usage) for usage in told))
    assert rate(rater, *many(2))[0] == [4.0, 4.0]
    assert tuple(rater.counters().get(name) for name in ("input_tokens", "output_tokens", "cost")) == counted


def many(count: int) -> list:
    return [spoken(sound=number) for number in range(count)]


def test_a_failure_that_may_pass_is_tried_again():
    rater = Scripted(DOWN, 100, JudgeAnswer(score=4, reason="good"), timeout=5)
    assert rate(rater)[0] == [4.0]
    assert rater.counters()["calls"] == 3
    assert rater.counters()["retries"] == 2
    assert rater.counters()["latency_seconds"] == pytest.approx(5.02)


@pytest.mark.parametrize(
    ("step", "reason", "calls"),
    [
        (DOWN, FailureReason.SERVER, 3),
        (JudgeFailure(FailureReason.REFUSED, "HTTP 401"), FailureReason.REFUSED, 1),
        (100, FailureReason.TIMEOUT, 3),
        (JudgeAnswer(score="5"), FailureReason.NOT_A_NUMBER, 1),
        (JudgeAnswer(score=3, version="2"), FailureReason.OTHER_VERSION, 1),
    ],
)
def test_a_failure_is_missing_by_fault_of_the_rater(step, reason, calls):
    """Method §7, rule 1."""
    rater = Scripted(step, retries=2, timeout=5)
    assert rate(rater)[0] == [missing(reason)]
    assert len(rater.asked) == calls
    assert len(rater.cache) == 0
    assert rater.counters()["failures"] == 1


def test_a_fault_in_the_code_of_a_rater_tells_nothing_but_its_kind():
    [rated], _ = at_once(Scripted(RuntimeError("Bearer abc")).rate_batch([spoken()], 10))
    assert rated.score == MissingScore("judge raised RuntimeError", fault="rater")
    assert "abc" not in repr(rated)


def test_one_reply_takes_no_longer_than_its_deadline():
    for deadline in (1, 7, 30):
        scores, took = rate(Scripted(100, timeout=5, deadline=deadline, retries=50, breaker_failures=100))
        assert scores == [missing(FailureReason.TIMEOUT)]
        assert took <= deadline


def test_it_waits_as_long_as_it_is_asked_to_if_there_is_time():
    busy = JudgeFailure(FailureReason.LIMITED, "HTTP 429", retryable=True, retry_after_s=20)
    patient = Scripted(busy, JudgeAnswer(score=2), deadline=30)
    assert rate(patient)[0] == [2.0]
    assert 20 <= patient.asked[1] - patient.asked[0] <= 21
    hurried = Scripted(busy, JudgeAnswer(score=2), deadline=15)
    scores, took = rate(hurried)
    assert scores == [missing(FailureReason.LIMITED)]
    assert took < 1


@given(retries=st.integers(1, 12), seed=st.integers(0, 99), after=st.none() | st.floats(0, 1e3))
def test_pauses_grow_up_to_a_bound_and_keep_the_requested_delay(retries, seed, after):
    busy = JudgeFailure(FailureReason.LIMITED, "HTTP 429", retryable=True, retry_after_s=after)
    limits = {"first_pause": 0.5, "longest_pause": 20, "deadline": 1e6, "breaker_failures": 100}
    rater = Scripted(busy, retries=retries, seed=seed, **limits)
    assert rate(rater, seconds=1e6)[0] == [missing(FailureReason.LIMITED)]
    assert len(rater.asked) == retries + 1
    for attempt, (one, other) in enumerate(pairwise(rater.asked)):
        pause = other - one - 0.01  # what the attempt itself takes
        assert (after or 0) - 1e-6 <= pause <= (after or 0) + min(20, 0.5 * 2**attempt) + 1e-6


def test_so_many_at_once_and_no_more():
    rater = Scripted(1, concurrency=4)
    scores, took = rate(rater, *many(20))
    assert scores == [3.0] * 20
    assert rater.most == 4
    assert took == pytest.approx(5.0)


def test_a_batch_ends_in_time_with_what_it_has():
    """A reply that is answered keeps its score, whatever happens to the others."""
    rater = Scripted(*[JudgeAnswer(score=5), 100] * 5, 100, concurrency=2, timeout=20, retries=0, breaker_failures=50)
    scores, took = rate(rater, *many(30), seconds=50)
    assert took <= 50
    assert scores.count(5.0) == 5
    assert scores.count(missing(FailureReason.TIMEOUT)) == 25


def test_a_rater_that_is_down_is_left_alone_and_tried_again():
    rater = Scripted(DOWN, retries=0, breaker_failures=3, breaker_seconds=60, concurrency=1)

    async def story():
        down = await rater.rate_batch(many(10), 1000)
        calls, before = len(rater.asked), asyncio.get_running_loop().time()
        refused = await rater.rate_batch(many(10), 1000)
        assert asyncio.get_running_loop().time() == before
        assert len(rater.asked) == calls
        await asyncio.sleep(60)
        rater.script = [JudgeAnswer(score=4)]
        return down, refused, await rater.rate_batch(many(10), 1000)

    (down, refused, up), _ = at_once(story())
    assert [one.score for one in down] == [missing(FailureReason.SERVER)] * 3 + [missing(FailureReason.UNAVAILABLE)] * 7
    assert {one.score for one in refused} == {missing(FailureReason.UNAVAILABLE)}
    assert [one.score for one in up] == [4.0] * 10
    assert rater.counters()["breaker_openings"] == 1
    assert rater.counters()["unavailable"] == 17
    assert not rater.circuit_open


def test_a_rater_that_never_answers_is_down():
    rater = Scripted(100, timeout=5, retries=0, breaker_failures=3, concurrency=1)
    scores, took = rate(rater, *many(10))
    assert scores == [missing(FailureReason.TIMEOUT)] * 3 + [missing(FailureReason.UNAVAILABLE)] * 7
    assert took == pytest.approx(15)
    assert rater.circuit_open
    hurried = Scripted(100, timeout=50, retries=0, breaker_failures=1)  # its time limit was cut short
    assert rate(hurried, seconds=5)[0] == [missing(FailureReason.TIMEOUT)]
    assert hurried.counters()["breaker_openings"] == 0


def test_those_who_come_while_one_is_finding_out_wait_for_it():
    rater = Scripted(DOWN, retries=0, breaker_failures=1, breaker_seconds=60, concurrency=8)

    async def story():
        await rater.rate_batch(many(1), 1000)
        await asyncio.sleep(60)
        rater.script = [7]
        return await rater.rate_batch(many(8), 1000)

    rated, _ = at_once(story())
    assert [one.score for one in rated] == [3.0] * 8
    assert sorted(rater.asked)[2] - sorted(rater.asked)[1] >= 7


def test_nonsense_does_not_open_the_breaker():
    """A rater that answers is not down; missing scores have their own limit."""
    rater = Scripted(JudgeAnswer(score=None), breaker_failures=2)
    assert set(rate(rater, *many(10))[0]) == {missing(FailureReason.NOT_A_NUMBER)}
    assert len(rater.asked) == 10


def test_nothing_is_asked_twice():
    rater = Scripted(JudgeAnswer(score=4, reason="clear"))

    async def story():
        return await rater.rate_batch([spoken(), spoken(), spoken(sound=1)], 10), await rater.rate_batch([spoken()], 10)

    (first, second), _ = at_once(story())
    assert [one.score for one in first + second] == [4.0] * 4
    assert second[0].details == {"judge_reason": "clear"}
    assert len(rater.asked) == 2
    assert rater.counters()["cache_hits"] == 1
    other = Scripted(DOWN)
    other.cache.load(rater.cache.table())
    assert rate(other)[0] == [4.0]
    narrower = Scripted(JudgeAnswer(score=2), highest=3.0)
    narrower.cache.load(rater.cache.table())
    assert rate(narrower)[0] == [2.0]


def test_a_rater_that_listens_is_not_shown_a_reply_without_speech():
    listens, reads = Scripted(JudgeAnswer(score=4)), Scripted(JudgeAnswer(score=4), listens=False)
    assert rate(listens, spoken(sound=None))[0] == [MissingScore("no speech in the reply", fault="reply")]
    assert rate(reads, spoken(sound=None))[0] == [4.0]
    assert listens.asked == []


def test_it_works_from_any_thread():
    rater = Scripted(JudgeAnswer(score=4))
    assert rater.rate(spoken()) == 4.0
    assert [one.score for one in rater.rate_all(many(3), 10)] == [4.0] * 3


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=3,
    ),
    st.none() | st.text(st.characters(categories=["Cs", "L"])) | st.integers(),
)
def test_only_a_number_on_the_scale_is_a_score(score, reason):
    """Method §7, rule 1: nothing is converted or clipped."""
    if type(score) in (int, float) and 1 <= score <= 5 and not isinstance(reason, int):
        answer = parse_number(score, reason, 1.0, 5.0)
        assert answer.score == score
        assert len(answer.reason.encode("utf-8")) >= len(reason or "")
    else:
        with pytest.raises(JudgeFailure) as failure:
            parse_number(score, reason, 1.0, 5.0)
        assert failure.value.reason in set(FailureReason)


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"version": 3},
        {"retries": -1},
        {"retries": 1.5},
        {"concurrency": 0},
        {"concurrency": True},
        {"timeout": 0},
        {"timeout": "30"},
        {"deadline": float("inf")},
        {"highest": 1.0},
        {"lowest": None},
        {"listens": "no"},
        {"breaker_seconds": float("nan")},
    ],
)
def test_impossible_settings_are_refused_by_name(change):
    with pytest.raises(InputError, match=next(iter(change))):
        RemoteJudgeConfig(**({"name": "judge", "version": "1"} | change))
