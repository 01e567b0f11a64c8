"""Questions that come while a judge is busy are answered together."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reward.llm_judges.vllm_service import Desk


class Judge:
    """Answers with the doubled number, once it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may = threading.Event()
        self.started = threading.Event()

    def answer(self, questions):
        self.batches.append(list(questions))
        self.started.set()
        assert self.may.wait(10)
        if -1 in questions:
            raise RuntimeError("no answer to that")
        return [2 * question for question in questions]


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as threads:
        yield threads


def run(judge: Judge, executor, story, most: int = 3):
    async def whole():
        return await story(Desk(judge.answer, executor, most))

    return asyncio.run(asyncio.wait_for(whole(), 20))


async def busy(judge: Judge, desk: Desk) -> asyncio.Task:
    """The first question is being answered."""
    first = asyncio.create_task(desk.ask(0, 10))
    await asyncio.to_thread(judge.started.wait, 10)
    return first


def test_what_comes_meanwhile_is_answered_together_and_no_more_than_fits(executor):
    judge = Judge()

    async def story(desk):
        first = await busy(judge, desk)
        others = [asyncio.create_task(desk.ask(number, 10)) for number in range(1, 6)]
        await asyncio.sleep(0)
        judge.may.set()
        return await asyncio.gather(first, *others)

    assert run(judge, executor, story) == [0, 2, 4, 6, 8, 10]
    assert judge.batches == [[0], [1, 2, 3], [4, 5]]


def test_a_question_that_nobody_waits_for_is_dropped(executor):
    judge = Judge()

    async def story(desk):
        first = await busy(judge, desk)
        with pytest.raises(TimeoutError):
            await desk.ask(1, 0.02)
        given_up = asyncio.create_task(desk.ask(2, 10))
        await asyncio.sleep(0)
        given_up.cancel()
        last = asyncio.create_task(desk.ask(3, 10))
        await asyncio.sleep(0)
        judge.may.set()
        return await asyncio.gather(first, last)

    assert run(judge, executor, story) == [0, 6]
    assert judge.batches == [[0], [3]]


def test_who_waits_is_told_of_a_failure_and_the_next_are_asked_about(executor):
    judge = Judge()
    judge.may.set()

    async def story(desk):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no answer to that"):
                await desk.ask(-1, 10)
        return await desk.ask(4, 10)

    assert run(judge, executor, story) == 8
    assert judge.batches == [[-1], [-1], [4]]
