"""Several simulated workers to a process, where one for each would be too many for this machine.

A process of Ray's that waits for work looks for signals a hundred times a second, which takes nearly one per cent of a
processor here: 256 of them are more than two processors have, on a cluster of 256 machines they are nothing. So a
worker gets a thread of a `Host` and what the controller holds of it is a `Seat`. To the controller nothing changes:
every call is a call of an actor, with arguments and an answer of its own, and every worker has its place.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import ray

from bench.stubs import Worker
from cluster.member import Member


class Host(Member):
    """The process. Its threads are as many as it has seats."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: dict[str, tuple[Worker, threading.Lock]] = {}
        self._door = threading.Lock()

    def ask(self, name: str, method: str, *arguments: Any) -> Any:
        """What a worker answers, which does one thing at a time, as an actor does. One that is asked for the first time
        is made."""
        with self._door:
            if name not in self._workers:
                self._workers[name] = Worker(name), threading.Lock()
        worker, turn = self._workers[name]
        with turn:
            return getattr(worker, method)(*arguments)


class Seat:
    """Stands for the handle of an actor, and is known to Ray as its host, which beats for it."""

    def __init__(self, host: Any, name: str) -> None:
        self._host, self._name = host, name
        self._actor_id = host._actor_id

    def __getattr__(self, method: str) -> "Call":
        if method.startswith("_"):
            raise AttributeError(method)
        return Call(self._host, self._name, method)


class Call:
    def __init__(self, host: Any, name: str, method: str) -> None:
        self._host, self._name, self._method = host, name, method

    def remote(self, *arguments: Any) -> ray.ObjectRef:
        return self._host.ask.remote(self._name, self._method, *arguments)


class Hall:
    """Stands for the module `ray` where a pool makes its workers."""

    def __init__(self, seats: int) -> None:
        """seats: of a process."""
        self._seats, self._hosts, self._taken = seats, [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    def remote(self, _: type) -> "Hall":
        return self

    def options(self, **_: Any) -> "Making":
        return Making(self._seat)

    def _seat(self, name: str, *_: Any) -> Seat:
        if self._taken == self._seats * len(self._hosts):
            kind = ray.remote(Host).options(num_cpus=0.01, max_concurrency=self._seats)
            self._hosts.append(kind.remote())
        self._taken += 1
        return Seat(self._hosts[-1], f"{name}-{self._taken}")


class Making:
    def __init__(self, remote: Callable[..., Seat]) -> None:
        self.remote = remote


@contextmanager
def shared(seats: int) -> Iterator[None]:
    """Rollout workers that are started meanwhile share processes, so many to each."""
    kill = ray.kill

    def end(actor: Any) -> None:
        if not isinstance(actor, Seat):
            kill(actor)

    with patch("rollout.pool.ray", Hall(seats)), patch.object(ray, "kill", end):
        yield
