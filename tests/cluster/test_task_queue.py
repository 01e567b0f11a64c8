"""Which calls are made: in batch mode and in continuous mode."""

from collections import Counter

import pytest

from cluster.task_queue import MAX_ATTEMPTS, Scheduler, TaskQueue
from cluster.waiting import CallTimeout


def batched(names: list[str]) -> TaskQueue:
    queue = TaskQueue(lambda actor, items: items, "squaring")
    for name in names:
        queue.add(name)
    return queue


def continuous(names: list[str], size: int) -> TaskQueue:
    queue = TaskQueue(
        lambda actor, items: items, "drawing", read_results=lambda answer, items: answer, max_in_flight=size
    )
    for name in names:
        queue.add(name)
    return queue


def test_in_batch_mode_idle_actors_get_queued_tasks_and_busy_ones_none():
    scheduler, one, two = Scheduler(), batched(["x", "y", "z"]), batched(["u"])
    scheduler.add(one)
    scheduler.add(two)
    assert scheduler.assign({}, ["a", "b"], []) == [(one, "a", (0, 1)), (one, "b", (2,))]
    calls = {(one, "a"): 1, (one, "b"): 1}
    assert scheduler.assign(calls, ["a", "b"], []) == []
    for item in (0, 1):
        one.complete(item, item)
    assert scheduler.assign({(one, "b"): 1}, ["a", "b"], []) == [(two, "a", (0,))]
    assert (scheduler.in_flight, scheduler.queued, scheduler.num_held("b")) == (2, 0, 1)


def test_in_continuous_mode_an_actor_has_two_calls_while_it_holds_tasks():
    scheduler, queue = Scheduler(), continuous(["x", "y", "z"], size=2)
    scheduler.add(queue)
    calls = Counter()
    for expected in ([(queue, "a", (0, 1)), (queue, "a", ())], []):
        due = scheduler.assign(calls, ["a"], [])
        assert due == expected
        calls.update((one, name) for one, name, _ in due)
    queue.complete(0, "done")
    calls[queue, "a"] -= 1
    assert scheduler.assign(calls, ["a"], []) == [(queue, "a", (2,))]
    calls.clear()
    assert scheduler.assign(calls, [], ["a"]) == [(queue, "a", ())], "a draining actor gets no new tasks"


def test_a_task_that_kills_its_actors_is_named():
    scheduler, queue = Scheduler(), continuous(["poison", "food"], size=9)
    scheduler.add(queue)
    for _ in range(MAX_ATTEMPTS):
        scheduler.assign({}, ["a"], [])
        queue.complete(1, "done")
        scheduler.requeue("a")
    with pytest.raises(CallTimeout, match="task failed on 4 actors while drawing: poison"):
        scheduler.assign({}, ["a"], [])


def test_a_task_that_fails_twice_is_named():
    queue = batched(["x", "y"])
    assert queue.record_failures([0]) == ""
    assert queue.record_failures([0, 1]) == "x"


def test_a_call_returns_one_result_per_task():
    with pytest.raises(ValueError, match="the call had 2 tasks but returned 1 results"):
        batched([]).read_results([1], (0, 1))
