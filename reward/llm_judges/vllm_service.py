"""Where questions wait for a judge that answers many at once: what comes while it is busy is answered together next.

One judge for all reward servers: a Ray actor that whoever comes first starts, and the way to it.

It is found by a name that says what it was started with. It is detached, so that it outlives the reward server that
happened to start it; it ends by itself, with its process, once nobody who uses it lives: with the job, at the latest.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster import ray_cluster
from cluster.monitored_actor import MonitoredActor, find_identity
from cluster.placement import missing_resources
from cluster.post_mortem import describe
from common.errors import InputError
from reward.llm_judges.prompts import rubric_digest
from reward.llm_judges.vllm_engine import JudgeEngine, JudgeEngineSettings, Question, Verdict, process_environment
from reward.remote.client import FailureReason, JudgeFailure

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


LOOK_SECONDS = 2.0
"""How often the judge looks whether somebody uses it."""


LINGER_SECONDS = 20.0
"""How long nobody may, before it ends: a new reward server may be on its way."""


LAST_WORDS_SECONDS = 1.0
"""For answers that are on their way when an engine has failed."""


STARTS = 2
"""How often a judge is looked for: the one that is found may just be ending."""


DRIVER = "driver"
"""A user that is no actor."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Where a judge may be, and for how long it may take to be there."""

    needs: Mapping[str, float]
    """Ray's resources."""
    start_seconds: float


class Judge(Protocol):
    """A judge as a rater sees it."""

    version: str
    """Of its engine."""

    async def judge(self, question: Question, seconds: float) -> Verdict:
        """Raises Failure when there is no verdict at all."""
        ...


class Users:
    """Who uses a judge, by Ray's actor id. Thread-safe: a set that only grows."""

    def __init__(self, linger: float) -> None:
        """linger: seconds for which nobody may live."""
        self._linger, self._known = linger, set[str]()
        self._last = time.monotonic()

    def add(self, user: str) -> None:
        self._known.add(user)
        self._last = time.monotonic()

    def deserted(self) -> bool:
        """Whether nobody has lived for so long."""
        if any(_lives(user) for user in list(self._known)):
            self._last = time.monotonic()
        return time.monotonic() - self._last > self._linger


def _lives(user: str) -> bool:
    if user == DRIVER:
        return not ray_cluster.driver_is_dead()
    try:
        found = find_identity(user)
    except Exception:  # nobody can say now: a judge that is ended too late costs less than one that is missed
        return True
    return found is not None and not found.death


class JudgeServer(MonitoredActor):
    """The actor: an engine, a desk before it, and a watch over its users."""

    def __init__(self, settings: JudgeEngineSettings, linger: float = LINGER_SECONDS) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._refusal: InputError | None = None
        try:
            self._engine = self._thread.submit(JudgeEngine, settings).result()
        except InputError as error:  # for whoever asks, in one sentence
            self._refusal = error
        else:
            self._desk = Desk(self._engine.answer, self._thread, settings.max_sequences)
        self._users = Users(linger)  # from now on: loading may take longer than anybody lingers
        threading.Thread(target=self._watch, name="users", daemon=True).start()

    async def hello(self, user: str) -> str:
        """Somebody will ask. Returns the version of the engine. Raises InputError when there can be none."""
        self._users.add(user)
        if self._refusal is not None:
            raise self._refusal
        return self._engine.version

    async def judge(self, question: Question, seconds: float) -> Verdict:
        """Raises TimeoutError, and what the engine raises, after which this process ends."""
        try:
            return await self._desk.ask(question, seconds)
        except TimeoutError:
            raise
        except Exception:  # an engine that has failed once is not asked again
            threading.Timer(LAST_WORDS_SECONDS, os._exit, (1,)).start()
            raise

    def _watch(self) -> None:
        while not self._users.deserted():
            time.sleep(LOOK_SECONDS)
        os._exit(0)


class Here:
    """A judge in this process, where there is no cluster: for `duet doctor`."""

    def __init__(self, settings: JudgeEngineSettings) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._engine = self._thread.submit(JudgeEngine, settings).result()
        self._desks: dict[asyncio.AbstractEventLoop, Desk[Question, Verdict]] = {}
        self._most = settings.max_sequences
        self.version = self._engine.version

    async def judge(self, question: Question, seconds: float) -> Verdict:
        loop = asyncio.get_running_loop()
        desk = self._desks.setdefault(loop, Desk(self._engine.answer, self._thread, self._most))
        try:
            return await desk.ask(question, seconds)
        except TimeoutError:
            raise _late(seconds) from None


class There:
    """The judge that all reward servers of a job share."""

    def __init__(self, settings: JudgeEngineSettings, room: Room) -> None:
        """Waits until it is up. Raises InputError when there can be no such judge, TimeoutError when it is not up in
        time, and RuntimeError when it died."""
        self._settings, self._room = settings, room
        self._user = ray.get_runtime_context().get_actor_id() or DRIVER
        end = time.monotonic() + room.start_seconds
        for attempt in range(1, STARTS + 1):
            self._actor = self._start()
            try:
                self.version = self._meet(max(0.0, end - time.monotonic()))
                return
            except RayActorError as error:
                if attempt == STARTS:
                    raise RuntimeError(
                        f"the judge {settings.checkpoint} died at its start: {describe(error)}"
                    ) from error

    async def judge(self, question: Question, seconds: float) -> Verdict:
        try:
            return await self._actor.judge.remote(question, seconds)
        except RayActorError as error:
            # Another one is started, by whoever is first; until it is up, questions to it wait and time out.
            self._actor = self._start()
            self._actor.hello.remote(self._user)
            note = f"the judge is gone ({type(error).__name__}), and is started again"
            raise JudgeFailure(FailureReason.CONNECTION, note, again=True, down=True) from None
        except RayTaskError as error:
            if isinstance(error.cause, TimeoutError):
                raise _late(seconds) from None
            note = f"the judge failed: {type(error.cause).__name__}"
            raise JudgeFailure(FailureReason.SERVER, note, again=True, down=True) from None

    def _meet(self, seconds: float) -> str:
        try:
            return ray.get(self._actor.hello.remote(self._user), timeout=seconds)
        except GetTimeoutError:
            ray.kill(self._actor)
            raise TimeoutError(
                f"the judge {self._settings.checkpoint} was not up within {self._room.start_seconds:.0f} s "
                f"(start_seconds); {missing_resources(self._room.resources)}"
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise

    def _start(self) -> Any:
        """The actor of these settings, which is started if there is none."""
        others = dict(self._room.resources)
        options = {"num_cpus": others.pop("CPU", 0), "num_gpus": others.pop("GPU", 0), "resources": others}
        return (
            ray.remote(JudgeServer)
            .options(
                name=f"judge-{rubric_digest(asdict(self._settings))}",
                get_if_exists=True,
                lifetime="detached",
                max_restarts=0,
                max_concurrency=1000,  # all may wait at the desk
                runtime_env={"env_vars": process_environment(self._settings)},
                **options,
            )
            .remote(self._settings)
        )


def reach(settings: JudgeEngineSettings, room: Room) -> Judge:
    """The judge of these settings: that of the cluster, or, where this process is in none, one of its own."""
    return There(settings, room) if ray.is_initialized() else _here(settings)


@cache
def _here(settings: JudgeEngineSettings) -> Here:
    return Here(settings)


def _late(seconds: float) -> JudgeFailure:
    return JudgeFailure(FailureReason.TIMEOUT, f"the judge did not answer within {seconds:.3g} s", again=True)
