"""Work that is lent out and counts once: what a member does not bring back goes to another. Pure.

An item is waiting, lent to one member, or done. A member that dies, stalls past its deadline or leaves loses what it
was lent. A result that comes back for an item that is done already is not taken.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Items in one member's hands."""

    member: str
    items: tuple[int, ...]
    deadline: float


class Leases:
    """Items 0 to `count` − 1 of one batch."""

    def __init__(self, count: int) -> None:
        self._waiting = deque(range(count))
        self._lent: dict[str, Lease] = {}
        self._results: dict[int, Any] = {}
        self._count = count
        self.attempts = [0] * count
        """How often each item was lent."""

    @property
    def open(self) -> bool:
        """Whether something is not done yet."""
        return len(self._results) < self._count

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def lent(self) -> int:
        """Items in members' hands; may be asked from another thread."""
        return sum(len(lease.items) for lease in list(self._lent.values()))

    def give(self, members: Sequence[str], now: float, seconds: float) -> list[Lease]:
        """Deals what is waiting out to these members, all of whom are idle, in contiguous shares that differ by at most
        one item. Members that are left without any get no lease."""
        given = []
        for place, member in enumerate(members):
            share = -(-len(self._waiting) // (len(members) - place))
            if not share:
                continue
            items = tuple(self._waiting.popleft() for _ in range(share))
            for item in items:
                self.attempts[item] += 1
            self._lent[member] = Lease(member=member, items=items, deadline=now + seconds)
            given.append(self._lent[member])
        return given

    def take(self, lease: Lease, results: Sequence[Any]) -> None:
        """What a member brings back, a result an item. Raises ValueError when it is not a result an item."""
        if len(results) != len(lease.items):
            raise ValueError(f"{lease.member} was lent {len(lease.items)} items and brought {len(results)} results")
        if self._lent.get(lease.member) is lease:
            del self._lent[lease.member]
        for item, result in zip(lease.items, results, strict=True):
            self._results.setdefault(item, result)
            if item in self._waiting:  # it was given up for lost, and came after all
                self._waiting.remove(item)

    def revoke(self, member: str) -> tuple[int, ...]:
        """Takes back what a member has; it is dealt out again, before what has waited so far. Returns the items."""
        lease = self._lent.pop(member, None)
        if lease is None:
            return ()
        again = [item for item in lease.items if item not in self._results]
        self._waiting.extendleft(reversed(again))
        return tuple(again)

    def overdue(self, now: float) -> list[str]:
        """Members past their deadline."""
        return [member for member, lease in self._lent.items() if now >= lease.deadline]

    def busy(self, members: Iterable[str]) -> set[str]:
        """Those among them that hold a lease."""
        return {member for member in members if member in self._lent}

    def results(self) -> list[Any]:
        """A result an item, in order. Raises RuntimeError while work is open."""
        if self.open:
            raise RuntimeError(f"{self._count - len(self._results)} of {self._count} items are not done")
        return [self._results[item] for item in range(self._count)]
