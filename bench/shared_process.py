"""Several simulated workers to a process, where one for each would be too many for this machine.

A process of Ray's that waits for work looks for signals a hundred times a second, which takes 0.5 % to 1 % of a
processor here: 256 of them take most of two processors, and on a cluster of 256 machines they are nothing. So a worker
is a `SharedActor` of a `SharedProcess`. For the controller every call is still a call of an actor, with arguments and
an answer of its
own, and every worker has its place in the cluster; what it has fewer of are connections to actors, and beats.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import ray

from bench.stubs import RolloutWorkerStub
from cluster.monitored_actor import MonitoredActor

CALLS = 3
"""That a seat may have at a time: the pool has two questions with each worker, and one more when it gives up."""


class SharedProcess(MonitoredActor):
    """The process, with a thread for each call that may wait."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: dict[str, RolloutWorkerStub] = {}
        self._next: dict[str, int] = {}
        """Number of the call that each worker does next."""
        self._turn = threading.Condition()

    def ask(self, name: str, number: int, method: str, *arguments: Any) -> Any:
        """What a worker answers, which does one thing at a time and in the order of their numbers, as an actor does.
        One that is asked for the first time is made."""
        with self._turn:
            worker = self._workers.setdefault(name, RolloutWorkerStub(name))
            self._turn.wait_for(lambda: self._next.get(name, 0) == number)
        try:
            return getattr(worker, method)(*arguments)
        finally:
            with self._turn:
                self._next[name] = number + 1
                self._turn.notify_all()


class SharedActor:
    """Stands for the handle of an actor, and is known to Ray as its host, which beats for it."""

    def __init__(self, host: Any, name: str) -> None:
        self._host, self._name, self._numbers = host, name, count()
        self._actor_id = host._actor_id

    def __getattr__(self, method: str) -> "SharedCall":
        if method.startswith("_"):
            raise AttributeError(method)
        return SharedCall(lambda *given: self._host.ask.remote(self._name, next(self._numbers), method, *given))


class SharedCall:
    """Stands for a method of an actor, or for the making of one."""

    def __init__(self, remote: Callable[..., Any]) -> None:
        self.remote = remote


class SharedProcessPool:
    """Stands for the module `ray` where a pool makes its workers."""

    def __init__(self, seats: int) -> None:
        """seats: of a process."""
        self._seats, self._hosts, self._taken = seats, [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    def remote(self, _: type) -> "SharedProcessPool":
        return self

    def options(self, **_: Any) -> SharedCall:
        return SharedCall(self._seat)

    def _seat(self, name: str, *_: Any) -> SharedActor:
        if self._taken == self._seats * len(self._hosts):
            kind = ray.remote(SharedProcess).options(num_cpus=0.01, max_concurrency=CALLS * self._seats)
            self._hosts.append(kind.remote())
        self._taken += 1
        return SharedActor(self._hosts[-1], f"{name}-{self._taken}")


@contextmanager
def shared(seats: int) -> Iterator[None]:
    """Start rollout workers in shared processes inside this context."""
    kill = ray.kill

    def end(actor: Any) -> None:
        if not isinstance(actor, SharedActor):
            kill(actor)

    with patch("rollout.pool.ray", SharedProcessPool(seats)), patch.object(ray, "kill", end):
        yield
