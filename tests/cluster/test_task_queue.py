"""Who is asked for what: in shares, and in turns."""

from collections import Counter

import pytest

from cluster.task_queue import LENT_TIMES, Scheduler, TaskQueue
from cluster.waiting import CallTimeout


def shares(names: list[str]) -> TaskQueue:
    job = TaskQueue(lambda actor, items: items, "squaring")
    for name in names:
        job.add(name)
    return job


def turns(names: list[str], room: int) -> TaskQueue:
    job = TaskQueue(lambda actor, items: items, "drawing", read=lambda answer, items: answer, room=room)
    for name in names:
        job.add(name)
    return job


def test_in_shares_the_idle_take_what_waits_and_the_busy_nothing():
    jobs, one, two = Scheduler(), shares(["x", "y", "z"]), shares(["u"])
    jobs.open(one)
    jobs.open(two)
    assert jobs.deal({}, ["a", "b"], []) == [(one, "a", (0, 1)), (one, "b", (2,))]
    asked = {(one, "a"): 1, (one, "b"): 1}
    assert jobs.deal(asked, ["a", "b"], []) == []
    for item in (0, 1):
        one.take(item, item)
    assert jobs.deal({(one, "b"): 1}, ["a", "b"], []) == [(two, "a", (0,))]
    assert (jobs.lent, jobs.waiting, jobs.held("b")) == (2, 0, 1)


def test_in_turns_a_member_has_two_questions_as_long_as_it_has_something():
    jobs, job = Scheduler(), turns(["x", "y", "z"], room=2)
    jobs.open(job)
    asked = Counter()
    for expected in ([(job, "a", (0, 1)), (job, "a", ())], []):
        questions = jobs.deal(asked, ["a"], [])
        assert questions == expected
        asked.update((one, name) for one, name, _ in questions)
    job.take(0, "done")
    asked[job, "a"] -= 1
    assert jobs.deal(asked, ["a"], []) == [(job, "a", (2,))]
    asked.clear()
    assert jobs.deal(asked, [], ["a"]) == [(job, "a", ())], "who leaves is asked for what it has, and gets nothing new"


def test_what_kills_everybody_is_named():
    jobs, job = Scheduler(), turns(["poison", "food"], room=9)
    jobs.open(job)
    for _ in range(LENT_TIMES):
        jobs.deal({}, ["a"], [])
        job.take(1, "done")
        jobs.revoke("a")
    with pytest.raises(CallTimeout, match="nobody finished drawing: lent 4 times each, to no end: poison"):
        jobs.deal({}, ["a"], [])


def test_an_item_that_fails_twice_is_named():
    job = shares(["x", "y"])
    assert job.failed([0]) == ""
    assert job.failed([0, 1]) == "x"


def test_an_answer_has_a_result_for_each_item():
    with pytest.raises(ValueError, match="lent 2 items, brought 1 results"):
        shares([]).read([1], (0, 1))
