"""Work that is lent out and counts once: what a member does not bring back goes to another. Pure.

An item is waiting, lent to one member, or done. A member that dies, stalls past its deadline or leaves loses what it
was lent. A result that comes back for an item that is done already is not taken.
"""

import heapq
from collections import deque
from collections.abc import Mapping
from typing import Any


class Leases:
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
