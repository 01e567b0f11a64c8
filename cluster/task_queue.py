"""Work of one kind that a pool's members are lent, and how they are asked for it. Without Ray: `cluster.actor_pool`
asks.

Work that is lent out and counts once: what a member does not bring back goes to another. Pure.

An item is waiting, lent to one member, or done. A member that dies, stalls past its deadline or leaves loses what it
was lent. A result that comes back for an item that is done already is not taken.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cluster.waiting import CallTimeout


class LeaseTable:
    """Items by number, in the order in which they were added."""

    def __init__(self, count: int = 0) -> None:
        """count: items that there are from the start."""
        self._waiting = deque(range(count))
        self._lent: dict[str, dict[int, None]] = {}
        self._holders: dict[int, str] = {}
        self._results: dict[int, Any] = {}
        self._next = count
        self.attempts: dict[int, int] = {}
        """How often each item that is not done was lent."""

    def add(self) -> int:
        """One more item; returns its number."""
        self._waiting.append(self._next)
        self._next += 1
        return self._next - 1

    @property
    def open(self) -> bool:
        """Whether something is not done yet."""
        return bool(self._waiting or self._holders)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def lent(self) -> int:
        """Items in members' hands; may be asked from another thread."""
        return len(self._holders)

    def held(self, member: str) -> int:
        """Items in one member's hands."""
        return len(self._lent.get(member, ()))

    def give(self, room: Mapping[str, float]) -> dict[str, tuple[int, ...]]:
        """Deals what is waiting out to members, each of whom has room for so many more, in contiguous shares, so that
        all come to hold as many as one another, to one item. Members that are left without any have no entry."""
        heap = [(self.held(member), place, member) for place, (member, free) in enumerate(room.items()) if free > 0]
        heapq.heapify(heap)
        counts = dict.fromkeys(room, 0)
        for _ in range(len(self._waiting)):
            if not heap:
                break
            held, place, member = heap[0]
            counts[member] += 1
            if counts[member] < room[member]:
                heapq.heapreplace(heap, (held + 1, place, member))
            else:
                heapq.heappop(heap)
        given = {}
        for member, count in counts.items():
            if count:
                given[member] = tuple(self._waiting.popleft() for _ in range(count))
                self._lent.setdefault(member, {}).update(dict.fromkeys(given[member]))
                for item in given[member]:
                    self._holders[item] = member
                    self.attempts[item] = self.attempts.get(item, 0) + 1
        return given

    def take(self, item: int, result: Any) -> None:
        """What a member, whoever it is, brings back."""
        if item in self._holders:
            del self._lent[self._holders.pop(item)][item]
        elif item in self._waiting:  # it was given up for lost, and came after all
            self._waiting.remove(item)
        else:
            return  # done before, or called off
        self._results[item] = result
        self.attempts.pop(item, None)

    def revoke(self, member: str) -> tuple[int, ...]:
        """Takes back what a member has; it is dealt out again, before what has waited so far. Returns the items."""
        again = tuple(self._lent.pop(member, ()))
        for item in again:
            del self._holders[item]
        self._waiting.extendleft(reversed(again))
        return again

    def give_back(self, item: int) -> None:
        """A member has it no longer, and has no result; it is the next to be dealt out."""
        if item in self._holders:
            del self._lent[self._holders.pop(item)][item]
            self._waiting.appendleft(item)

    def call_off(self) -> None:
        """Forgets everything that is not done."""
        self._waiting.clear()
        self._lent.clear()
        self._holders.clear()
        self.attempts.clear()

    def collect(self) -> dict[int, Any]:
        """Results by item since the last call, in the order in which they came."""
        results, self._results = self._results, {}
        return results


LENT_TIMES = 4
"""How often an item is lent before it is taken to be what kills its members."""


FAILED_TIMES = 2
"""How often work on an item may raise before that is taken to be the item's own."""


NAMED = 5
"""Items that a message names."""


Results = Iterable[tuple[int, Any]]


class TaskFailed:
    """In the place of a result: the item could not be done."""

    def __init__(self, error: str) -> None:
        self.error = error


class TaskQueue:
    """Items with names, lent to members.

    There are two ways to work. In shares, an idle member takes its part of what waits, and one answer brings all of it
    back. In turns, a member has room for so many items at once and works on all of them; it is asked again and again,
    each time with what is new to it, and each answer brings what has come to its end. Two questions are always with
    it, so that it never waits for the next.
    """

    def __init__(
        self,
        ask: Callable[[Any, list[int]], Any],
        doing: str,
        *,
        read: Callable[[Any, tuple[int, ...]], Results] | None = None,
        room: int | None = None,
        share: float = float("inf"),
    ) -> None:
        """ask: has an actor do some items, given by their numbers. doing: in words. read: from an answer, and the items
        that it was asked for, to results by item; none: the answer is a list with a result for each. room: of a member
        that works in turns; none: members work in shares. share: the most items of one."""
        self.ask, self.doing, self.room, self._share = ask, doing, room, share
        self.read = read or _one_each
        self.leases = LeaseTable()
        self.names: dict[int, str] = {}
        """Of items that are not done, for messages."""
        self._failures: dict[int, int] = {}

    def add(self, name: str) -> int:
        """One more item. Returns its number."""
        item = self.leases.add()
        self.names[item] = name
        return item

    @property
    def depth(self) -> int:
        """Questions that a member may have at once."""
        return 1 if self.room is None else 2

    def free(self, asked: Mapping[str, int], ready: Iterable[str], busy: Mapping[str, int]) -> dict[str, float]:
        """Room of members that can be asked for something new. asked: questions of this job that each has. ready:
        members that may be given work. busy: questions about any work that each has."""
        if self.room is None:
            return {name: self._share for name in ready if not busy.get(name)}
        return {name: self.room - self.leases.held(name) for name in ready if asked.get(name, 0) < self.depth}

    def goes_on(self, asked: Mapping[str, int], members: Iterable[str]) -> list[str]:
        """Members that are to be asked to go on with what they hold."""
        if self.room is None:
            return []
        return [name for name in members if self.leases.held(name) and asked.get(name, 0) < self.depth]

    def take(self, item: int, result: Any) -> None:
        self.leases.take(item, result)
        self.names.pop(item, None)
        self._failures.pop(item, None)

    def failed(self, items: Iterable[int]) -> str:
        """Counts a failure of work on items. Returns the names of those that have failed too often."""
        for item in items:
            self._failures[item] = self._failures.get(item, 0) + 1
        return _few([self.names[item] for item in items if self._failures[item] >= FAILED_TIMES])

    def call_off(self) -> None:
        """Forgets everything that is not done."""
        self.leases.call_off()
        self.names.clear()
        self._failures.clear()


class Scheduler:
    """What a pool has to do, the oldest first."""

    def __init__(self) -> None:
        self._jobs: list[TaskQueue] = []

    def open(self, job: TaskQueue) -> None:
        self._jobs.append(job)

    def close(self, job: TaskQueue) -> None:
        self._jobs.remove(job)

    def __contains__(self, job: TaskQueue | None) -> bool:
        return job in self._jobs

    @property
    def lent(self) -> int:
        """Items in members' hands; may be asked from another thread, as `waiting`."""
        return sum(job.leases.lent for job in list(self._jobs))

    @property
    def waiting(self) -> int:
        """Items that nobody has yet."""
        return sum(job.leases.waiting for job in list(self._jobs))

    def held(self, member: str) -> int:
        """Items in one member's hands."""
        return sum(job.leases.held(member) for job in self._jobs)

    def revoke(self, member: str) -> int:
        """Takes back what a member has. Returns how many items."""
        return sum(len(job.leases.revoke(member)) for job in self._jobs)

    def deal(
        self, asked: Mapping[tuple[TaskQueue, str], int], ready: Sequence[str], leaving: Sequence[str]
    ) -> list[tuple[TaskQueue, str, tuple[int, ...]]]:
        """Who is to be asked now, about which job, and with what that is new to it. Raises Overdue when an item was
        lent too often.

        asked: questions that members have. ready: members that may be given work; leaving: those that only finish
        theirs.
        """
        questions: list[tuple[TaskQueue, str, tuple[int, ...]]] = []
        busy = Counter[str]()
        for (_, name), count in asked.items():
            busy[name] += count
        for job in self._jobs:
            has = {name: asked.get((job, name), 0) for name in (*ready, *leaving)}
            # Asked several hundred times in an iteration of a large pool: nothing is gone through for nothing.
            given = job.leases.give(job.free(has, ready, busy)) if job.leases.waiting else {}
            tries = job.leases.attempts
            if worn := [job.names[i] for items in given.values() for i in items if tries[i] > LENT_TIMES]:
                raise CallTimeout(f"nobody finished {job.doing}: lent {LENT_TIMES} times each, to no end: {_few(worn)}")
            for name, items in given.items():
                questions.append((job, name, items))
                has[name] += 1
                busy[name] += 1
            questions += [(job, name, ()) for name in job.goes_on(has, (*ready, *leaving))]
        return questions


def _one_each(answer: Any, items: tuple[int, ...]) -> Results:
    if len(answer) != len(items):
        raise ValueError(f"lent {len(items)} items, brought {len(answer)} results")
    return zip(items, answer, strict=True)


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
