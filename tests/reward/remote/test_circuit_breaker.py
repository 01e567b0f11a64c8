"""States of the circuit breaker, and the Retry-After header."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from reward.remote.circuit_breaker import CircuitBreaker, CircuitDenial, CircuitState, retry_after


def test_it_opens_after_failures_in_a_row_and_tries_again_later():
    breaker = CircuitBreaker(failures=3, open_s=10)
    for alive in (False, False, True, False, False):  # the success in between resets the count
        breaker.record(breaker.acquire(0.0), alive, 0.0)
    assert breaker.state == CircuitState.CLOSED
    breaker.record(breaker.acquire(0.0), False, 1.0)
    assert breaker.state == CircuitState.OPEN
    assert breaker.acquire(10.9) == CircuitDenial.OPEN
    trial = breaker.acquire(11.0)
    assert isinstance(trial, int)
    assert breaker.state == CircuitState.HALF_OPEN
    assert breaker.acquire(11.0) == CircuitDenial.PROBING
    breaker.record(trial, False, 12.0)
    assert breaker.acquire(21.9) == CircuitDenial.OPEN
    breaker.record(breaker.acquire(22.0), True, 22.5)
    assert breaker.state == CircuitState.CLOSED
    assert breaker.openings == 2


def test_answers_from_before_it_opened_do_not_decide():
    breaker = CircuitBreaker(failures=1, open_s=10)
    early, late = breaker.acquire(0.0), breaker.acquire(0.0)
    breaker.record(early, False, 0.0)
    breaker.record(late, True, 1.0)
    assert breaker.state == CircuitState.OPEN
    trial = breaker.acquire(10.0)
    breaker.record(late, True, 10.0)
    assert breaker.state == CircuitState.HALF_OPEN
    breaker.record(trial, None, 10.0)  # no outcome: the next call probes
    assert breaker.state == CircuitState.OPEN
    assert isinstance(breaker.acquire(10.0), int)


class Any(RuleBasedStateMachine):
    """Permits and outcomes in any order."""

    permits = Bundle("permits")

    def __init__(self):
        super().__init__()
        self.breaker, self.now, self.failed = CircuitBreaker(failures=2, open_s=5), 0.0, -5.0

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds):
        self.now += seconds

    @rule(target=permits)
    def ask(self):
        before = self.breaker.state
        answer = self.breaker.acquire(self.now)
        if before == CircuitState.CLOSED:
            assert isinstance(answer, int)
        elif before == CircuitState.HALF_OPEN:
            assert answer == CircuitDenial.PROBING
        return answer

    @rule(permit=consumes(permits), alive=st.sampled_from([True, False, None]))
    def record(self, permit, alive):
        if isinstance(permit, int):
            before = self.breaker.openings
            self.breaker.record(permit, alive, self.now)
            if self.breaker.openings > before:
                assert alive is False
                self.failed = self.now

    @invariant()
    def it_is_never_shut_for_longer_than_agreed(self):
        if self.breaker.state == CircuitState.OPEN and self.now >= self.failed + 5:
            trial = self.breaker.acquire(self.now)
            assert isinstance(trial, int)
            self.breaker.record(trial, None, self.now)


TestAny = Any.TestCase


NOW = datetime(2026, 7, 9, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 09 Jul 2026 12:00:30 GMT", 30.0),
        ("Thu, 09 Jul 2026 11:00:00 GMT", 0.0),
        ("Thu, 09 Jul 2026 12:00:30 -0000", 30.0),
        ("soon", None),
        ("", None),
        ("-3", None),
        ("1.5", None),
        ("9" * 400, None),
    ],
)
def test_a_rater_may_say_when_to_come_back(value, seconds):
    assert retry_after(value, NOW) == seconds


@given(st.text() | st.datetimes(timezones=st.just(UTC)).map(lambda then: (then + timedelta()).isoformat()))
def test_nonsense_about_when_to_come_back_is_passed_over(value):
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0
