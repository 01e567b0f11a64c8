"""Where questions wait for a judge that answers many at once: what comes while it is busy is answered together next."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Desk(Generic[Asked, Answered]):
    """Belongs to one event loop. The judge works in an executor, so that the desk stays open meanwhile."""

    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Answered]], executor: Executor, most: int) -> None:
        """answer: an answer for each question, in order. most: questions at once."""
        self._answer, self._executor, self._most = answer, executor, most
        self._waiting: list[tuple[Asked, asyncio.Future[Answered]]] = []
        self._working: asyncio.Task[None] | None = None

    async def ask(self, question: Asked, seconds: float) -> Answered:
        """Raises TimeoutError, and whatever the judge raises. A question that nobody waits for any more is dropped."""
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        async with asyncio.timeout(seconds):
            return await answer

    async def _work(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            taken = [(question, answer) for question, answer in taken if not answer.done()]
            if not taken:
                continue
            loop = asyncio.get_running_loop()
            try:
                asked = [question for question, _ in taken]
                found = await loop.run_in_executor(self._executor, self._answer, asked)
            except Exception as error:  # whatever it is: those who wait are told, and the next are asked about
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), what in zip(taken, found, strict=True):
                if not answer.done():
                    answer.set_result(what)
