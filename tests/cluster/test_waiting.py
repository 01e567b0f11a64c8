"""Waiting for real Ray actors that are slow, that fail, and that die."""

import os
import time

import pytest
import ray

from cluster.waiting import ActorFailed, CallTimeout, gather

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("cluster")]


class Member:
    def answer(self, value: int) -> int:
        return value

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self) -> None:
        raise RuntimeError("no such luck")

    def die(self) -> None:
        os._exit(3)


@pytest.fixture(scope="module")
def members(cluster):
    remote = ray.remote(Member).options(num_cpus=0)
    made = [remote.remote() for _ in range(3)]
    gather({str(i): m.answer.remote(i) for i, m in enumerate(made)}, 60, "starting")
    return made


def test_answers_come_by_name_in_order(members):
    assert gather({f"m{i}": m.answer.remote(i) for i, m in enumerate(members)}, 10, "answering") == {
        "m0": 0,
        "m1": 1,
        "m2": 2,
    }


def test_who_is_late_is_named_and_the_deadline_is_for_all_together(members):
    started = time.monotonic()
    answers = {"quick": members[0].sleep.remote(1), "slow": members[1].sleep.remote(5)}
    with pytest.raises(CallTimeout, match=r"^slow: no answer within 2 s while napping"):
        gather(answers, 2.0, "napping")
    assert time.monotonic() - started < 4.0


def test_a_failure_ends_the_waiting_at_once(members):
    started = time.monotonic()
    answers = {"slow": members[0].sleep.remote(8), "bad": members[2].fail.remote()}
    with pytest.raises(ActorFailed, match=r"bad failed while working: RuntimeError.*no such luck"):
        gather(answers, 30, "working")
    assert time.monotonic() - started < 6


def test_a_death_is_named(members):
    with pytest.raises(ActorFailed, match=r"^m2 died while working: exit status not known; Ray reports: ") as caught:
        gather({"m2": members[2].die.remote()}, 30, "working")
    assert caught.value.post_mortem is not None
    assert str(caught.value.post_mortem) in str(caught.value)
