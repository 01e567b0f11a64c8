"""Task queues of an actor pool, their leases, and the scheduler that assigns tasks to actors. Pure: no Ray, no clock.

A task is queued, in flight on one actor, or done. An actor that dies, misses its deadline or is removed loses its
tasks, and another actor gets them. A second result for a task that is done is dropped: each task counts once.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cluster.waiting import CallTimeout


class LeaseTable:
    """State of tasks, numbered in the order of `add`."""

    def __init__(self, count: int = 0) -> None:
        """count: tasks at the start."""
        self._queued = deque(range(count))
        self._in_flight: dict[str, dict[int, None]] = {}
        self._holders: dict[int, str] = {}
        self._results: dict[int, Any] = {}
        self._next = count
        self.attempts: dict[int, int] = {}
        """Number of assignments of each task that is not done."""

    def add(self) -> int:
        """Add a task. Return its number."""
        self._queued.append(self._next)
        self._next += 1
        return self._next - 1

    @property
    def unfinished(self) -> bool:
        """True while a task is not done."""
        return bool(self._queued or self._holders)

    @property
    def queued(self) -> int:
        """Number of tasks without an actor."""
        return len(self._queued)

    @property
    def in_flight(self) -> int:
        """Number of assigned tasks. Thread-safe."""
        return len(self._holders)

    def num_held(self, name: str) -> int:
        """Return the number of tasks of one actor."""
        return len(self._in_flight.get(name, ()))

    def assign(self, capacity: Mapping[str, float]) -> dict[str, tuple[int, ...]]:
        """Assign queued tasks to actors in contiguous batches, such that all hold equally many, within one.

        capacity: number of further tasks that each actor can take. Actors that get none have no entry in the result.
        """
        heap = [(self.num_held(name), index, name) for index, (name, free) in enumerate(capacity.items()) if free > 0]
        heapq.heapify(heap)
        counts = dict.fromkeys(capacity, 0)
        for _ in range(len(self._queued)):
            if not heap:
                break
            held, index, name = heap[0]
            counts[name] += 1
            if counts[name] < capacity[name]:
                heapq.heapreplace(heap, (held + 1, index, name))
            else:
                heapq.heappop(heap)
        assigned = {}
        for name, count in counts.items():
            if count:
                assigned[name] = tuple(self._queued.popleft() for _ in range(count))
                self._in_flight.setdefault(name, {}).update(dict.fromkeys(assigned[name]))
                for task in assigned[name]:
                    self._holders[task] = name
                    self.attempts[task] = self.attempts.get(task, 0) + 1
        return assigned

    def complete(self, task: int, result: Any) -> None:
        """Keep the result of a task, from any actor. Drop it if the task is done or cancelled."""
        if task in self._holders:
            del self._in_flight[self._holders.pop(task)][task]
        elif task in self._queued:  # requeued before its result arrived
            self._queued.remove(task)
        else:
            return
        self._results[task] = result
        self.attempts.pop(task, None)

    def requeue(self, name: str) -> tuple[int, ...]:
        """Take all tasks from an actor and put them at the front of the queue. Return them."""
        tasks = tuple(self._in_flight.pop(name, ()))
        for task in tasks:
            del self._holders[task]
        self._queued.extendleft(reversed(tasks))
        return tasks

    def release(self, task: int) -> None:
        """Put one task that ended without a result at the front of the queue."""
        if task in self._holders:
            del self._in_flight[self._holders.pop(task)][task]
            self._queued.appendleft(task)

    def cancel(self) -> None:
        """Drop all tasks that are not done."""
        self._queued.clear()
        self._in_flight.clear()
        self._holders.clear()
        self.attempts.clear()

    def collect(self) -> dict[int, Any]:
        """Return results since the last call by task, in the order of arrival."""
        results, self._results = self._results, {}
        return results


MAX_ATTEMPTS = 4
"""Assignments of a task after which it counts as the cause of its actors' deaths."""


MAX_FAILURES = 2
"""Errors of a task after which the task counts as faulty."""


MAX_NAMED = 5
"""Number of tasks that a message names."""


Results = Iterable[tuple[int, Any]]


class TaskFailed:
    """Result of a task that failed."""

    def __init__(self, error: str) -> None:
        self.error = error


class TaskQueue:
    """Named tasks and the call that runs them.

    Batch mode: an idle actor gets its part of the queue, and one result completes all of it. Continuous mode
    (`max_in_flight`): an actor works on up to so many tasks at once. It is called repeatedly, with its new tasks, and
    each result completes the tasks that ended. Two calls are always in flight, so that the actor never idles.
    """

    def __init__(
        self,
        call: Callable[[Any, list[int]], Any],
        doing: str,
        *,
        read_results: Callable[[Any, tuple[int, ...]], Results] | None = None,
        max_in_flight: int | None = None,
        max_batch: float = float("inf"),
    ) -> None:
        """
        Args:
            call: Makes an actor run some tasks, given by number.
            doing: Activity, for messages.
            read_results: Splits a call's result, given its tasks, into results by task. None: a list, one per task.
            max_in_flight: Tasks of an actor in continuous mode. None: batch mode.
            max_batch: Tasks of one batch.
        """
        self.call, self.doing, self.max_in_flight, self._max_batch = call, doing, max_in_flight, max_batch
        self.read_results = read_results or _one_each
        self.leases = LeaseTable()
        self.names: dict[int, str] = {}
        """Names of tasks that are not done, for messages."""
        self._failures: dict[int, int] = {}

    def add(self, name: str) -> int:
        """Add a task. Return its number."""
        task = self.leases.add()
        self.names[task] = name
        return task

    @property
    def max_calls(self) -> int:
        """Calls of one actor in flight at once."""
        return 1 if self.max_in_flight is None else 2

    def capacity(self, calls: Mapping[str, int], ready: Iterable[str], busy: Mapping[str, int]) -> dict[str, float]:
        """Return how many further tasks each actor can take.

        Args:
            calls: Calls of this queue in flight, by actor.
            ready: Actors that may get tasks.
            busy: Calls of all queues in flight, by actor.
        """
        if self.max_in_flight is None:
            return {name: self._max_batch for name in ready if not busy.get(name)}
        return {
            name: self.max_in_flight - self.leases.num_held(name)
            for name in ready
            if calls.get(name, 0) < self.max_calls
        }

    def to_continue(self, calls: Mapping[str, int], names: Iterable[str]) -> list[str]:
        """Return the actors that need another call to continue with the tasks that they hold."""
        if self.max_in_flight is None:
            return []
        return [name for name in names if self.leases.num_held(name) and calls.get(name, 0) < self.max_calls]

    def complete(self, task: int, result: Any) -> None:
        """Keep the result of a task."""
        self.leases.complete(task, result)
        self.names.pop(task, None)
        self._failures.pop(task, None)

    def record_failures(self, tasks: Iterable[int]) -> str:
        """Count a failure of each task. Return the names of tasks with `MAX_FAILURES`, or ""."""
        for task in tasks:
            self._failures[task] = self._failures.get(task, 0) + 1
        return _list_names([self.names[task] for task in tasks if self._failures[task] >= MAX_FAILURES])

    def cancel(self) -> None:
        """Drop all tasks that are not done."""
        self.leases.cancel()
        self.names.clear()
        self._failures.clear()


class Scheduler:
    """Task queues of a pool, served in the order of `add`."""

    def __init__(self) -> None:
        self._queues: list[TaskQueue] = []

    def add(self, queue: TaskQueue) -> None:
        self._queues.append(queue)

    def remove(self, queue: TaskQueue) -> None:
        self._queues.remove(queue)

    def __contains__(self, queue: TaskQueue | None) -> bool:
        return queue in self._queues

    @property
    def in_flight(self) -> int:
        """Number of assigned tasks. Thread-safe, like `queued`."""
        return sum(queue.leases.in_flight for queue in list(self._queues))

    @property
    def queued(self) -> int:
        """Number of tasks without an actor."""
        return sum(queue.leases.queued for queue in list(self._queues))

    def num_held(self, name: str) -> int:
        """Return the number of tasks of one actor."""
        return sum(queue.leases.num_held(name) for queue in self._queues)

    def requeue(self, name: str) -> int:
        """Take all tasks from an actor. Return how many."""
        return sum(len(queue.leases.requeue(name)) for queue in self._queues)

    def assign(
        self, calls: Mapping[tuple[TaskQueue, str], int], ready: Sequence[str], draining: Sequence[str]
    ) -> list[tuple[TaskQueue, str, tuple[int, ...]]]:
        """Return the calls to make now: queue, actor, and its new tasks. Raise CallTimeout for a task with too many
        attempts.

        Args:
            calls: Calls in flight.
            ready: Actors that may get tasks.
            draining: Actors that only finish the tasks that they hold.
        """
        due: list[tuple[TaskQueue, str, tuple[int, ...]]] = []
        busy = Counter[str]()
        for (_, name), count in calls.items():
            busy[name] += count
        for queue in self._queues:
            own = {name: calls.get((queue, name), 0) for name in (*ready, *draining)}
            # Runs several hundred times per iteration of a large pool, so skip the work if the queue is empty.
            assigned = queue.leases.assign(queue.capacity(own, ready, busy)) if queue.leases.queued else {}
            attempts = queue.leases.attempts
            if failed := [queue.names[t] for ts in assigned.values() for t in ts if attempts[t] > MAX_ATTEMPTS]:
                raise CallTimeout(f"task failed on {MAX_ATTEMPTS} actors while {queue.doing}: {_list_names(failed)}")
            for name, tasks in assigned.items():
                due.append((queue, name, tasks))
                own[name] += 1
                busy[name] += 1
            due += [(queue, name, ()) for name in queue.to_continue(own, (*ready, *draining))]
        return due


def _one_each(result: Any, tasks: tuple[int, ...]) -> Results:
    if len(result) != len(tasks):
        raise ValueError(f"the call had {len(tasks)} tasks but returned {len(result)} results")
    return zip(tasks, result, strict=True)


def _list_names(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
