"""One vLLM server per judge model for all reward servers: a Ray actor that owns it, and the clients' way to it.

The actor's name is derived from the server's settings, so raters with the same settings share it; the first one starts
it. The actor is detached and outlives the reward server that started it. It restarts its server when that dies. It ends
itself and its server once no actor that uses it is alive, at the latest with the job.
"""

import asyncio
import atexit
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster import ray_cluster
from cluster.monitored_actor import MonitoredActor, find_identity, logs_directory
from cluster.placement import missing_resources
from cluster.post_mortem import describe
from common.errors import InputError
from reward.llm_judges.prompts import rubric_digest
from reward.llm_judges.vllm_server import Endpoint, ServerFailed, VllmServer, VllmServerConfig

POLL_S = 2.0
"""Interval at which the actor checks its users."""
LINGER_S = 20.0
"""Time without a live user before the actor ends: a new reward server may be on its way."""
LAST_ANSWER_S = 1.0
"""Time for the actor's last answers to leave before it ends."""
MAX_LOOKUPS = 2
"""Lookups of the actor: the one that is found first may be ending."""
LOG_TIMEOUT_S = 3.0
DRIVER = "driver"
"""Name of a user that is not an actor."""


@dataclass(frozen=True, kw_only=True)
class ServerPlacement:
    """Resources of the server's actor, and the time limit for its start."""

    needs: Mapping[str, float]
    """Ray resources."""
    start_seconds: float


class JudgeService(Protocol):
    """A running server, as a rater sees it."""

    model: str
    """Version of the engine, which is also the name of the served model."""

    async def endpoint(self) -> Endpoint:
        """Return the address of the server; wait for one that is being restarted."""
        ...

    def mark_lost(self, endpoint: Endpoint) -> None:
        """Report that this address does not answer; `endpoint` then looks for the server again."""
        ...


class Users:
    """The users of a server, by Ray actor id. Thread-safe: the set only grows."""

    def __init__(self, linger_s: float) -> None:
        """linger_s: time without a live user after which the server is unused."""
        self._linger_s, self._known = linger_s, set[str]()
        self._last_used = time.monotonic()

    def add(self, user: str) -> None:
        self._known.add(user)
        self.touch()

    def touch(self) -> None:
        """Restart the time without a live user."""
        self._last_used = time.monotonic()

    def all_gone(self) -> bool:
        """Return True if no user has been alive for `linger_s`."""
        if any(_is_alive(user) for user in list(self._known)):
            self._last_used = time.monotonic()
        return time.monotonic() - self._last_used > self._linger_s


def _is_alive(user: str) -> bool:
    if user == DRIVER:
        return not ray_cluster.driver_is_dead()
    try:
        identity = find_identity(user)
    except Exception:  # unknown for now: a late end costs less than a missing judge
        return True
    return identity is not None and not identity.death


class JudgeServer(MonitoredActor):
    """The actor: it starts the server, restarts it when it dies, and ends with its last user."""

    def __init__(self, config: VllmServerConfig, start_seconds: float, linger_s: float = LINGER_S) -> None:
        super().__init__()
        actor_id = ray.get_runtime_context().get_actor_id()
        log = logs_directory() / f"judge-{actor_id}.log"
        self._server = VllmServer(config, ray.util.get_node_ip_address(), log)
        self._start_seconds = start_seconds
        self._users = Users(linger_s)
        self._started: Future[Endpoint] = Future()
        threading.Thread(target=self._supervise, name="server", daemon=True).start()

    async def connect(self, user: str) -> Endpoint:
        """Register a user and wait for the server. Raise InputError or ServerFailed if it cannot start."""
        self._users.add(user)
        return await asyncio.shield(asyncio.wrap_future(self._started))  # a cancelled caller must not cancel the start

    async def log_tail(self) -> str:
        """Return the end of the server's log."""
        return self._server.log_tail()

    def _supervise(self) -> None:
        """Start the server, wait for its end, start it again. Runs in its own thread for as long as the actor lives."""
        restarted = False
        while True:
            try:
                endpoint = self._server.start(self._start_seconds)
            except Exception as error:  # also of a damaged checkpoint: `connect` raises it
                self._started.set_exception(error)
                if restarted:  # the next caller starts another actor, perhaps on another node
                    time.sleep(LAST_ANSWER_S)
                    os._exit(1)
                break
            self._users.touch()  # the start may take longer than `linger_s`
            self._started.set_result(endpoint)
            while not self._server.wait(POLL_S):
                self._end_if_unused()
            self._started = Future()
            restarted = True
        while True:
            self._end_if_unused()
            time.sleep(POLL_S)

    def _end_if_unused(self) -> None:
        if self._users.all_gone():
            self._server.stop()
            os._exit(0)


class LocalService:
    """A server of this process, without a cluster, for `duet doctor`."""

    def __init__(self, config: VllmServerConfig, start_seconds: float) -> None:
        """Wait until the server answers. Raise InputError or ServerFailed."""
        folder = tempfile.TemporaryDirectory(prefix="judge-")
        self._folder = folder  # deleted with this object
        server = VllmServer(config, "127.0.0.1", Path(folder.name) / "server.log")
        atexit.register(server.stop)
        self._endpoint = server.start(start_seconds)
        self.model = self._endpoint.model

    async def endpoint(self) -> Endpoint:
        return self._endpoint

    def mark_lost(self, endpoint: Endpoint) -> None:
        """Do nothing: a check is too short for a restart."""


class SharedService:
    """The server that all reward servers of a job share."""

    def __init__(self, config: VllmServerConfig, placement: ServerPlacement) -> None:
        """Wait until the server answers.

        Raise InputError for a model that cannot be this judge, TimeoutError if the server is not up in time, and
        RuntimeError if it failed.
        """
        self._config, self._placement = config, placement
        self._user = ray.get_runtime_context().get_actor_id() or DRIVER
        end = time.monotonic() + placement.start_seconds
        for attempt in range(1, MAX_LOOKUPS + 1):
            self._actor = self._find_or_start()
            try:
                self._endpoint: Endpoint | None = self._first_connect(max(0.0, end - time.monotonic()))
                self.model = self._endpoint.model
                return
            except RayActorError as error:
                if attempt == MAX_LOOKUPS:
                    raise RuntimeError(
                        f"the actor of the judge {config.checkpoint} died at its start: {describe(error)}"
                    ) from error

    async def endpoint(self) -> Endpoint:
        if self._endpoint is None:
            try:
                self._endpoint = await self._actor.connect.remote(self._user)
            except RayActorError:  # any caller may start another actor; get_if_exists keeps it one
                self._actor = self._find_or_start()
                self._endpoint = await self._actor.connect.remote(self._user)
        return self._endpoint

    def mark_lost(self, endpoint: Endpoint) -> None:
        if self._endpoint == endpoint:
            self._endpoint = None

    def _first_connect(self, timeout_s: float) -> Endpoint:
        try:
            return ray.get(self._actor.connect.remote(self._user), timeout=timeout_s)
        except GetTimeoutError:
            log = self._log_tail()
            ray.kill(self._actor)
            raise TimeoutError(
                f"the judge {self._config.checkpoint} was not up within {self._placement.start_seconds:.0f} s "
                f"(start_seconds); {log or missing_resources(self._placement.needs)}"
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, InputError | ServerFailed):
                raise error.cause from None
            raise

    def _log_tail(self) -> str:
        """Return the end of the server's log, or nothing if the actor has not started."""
        try:
            return f"the end of its log:\n{ray.get(self._actor.log_tail.remote(), timeout=LOG_TIMEOUT_S)}"
        except (GetTimeoutError, RayActorError, RayTaskError):
            return ""

    def _find_or_start(self) -> Any:
        """Return the actor of these settings; start it if there is none."""
        others = dict(self._placement.needs)
        options = {"num_cpus": others.pop("CPU", 0), "num_gpus": others.pop("GPU", 0), "resources": others}
        return (
            ray.remote(JudgeServer)
            .options(
                name=f"judge-{rubric_digest(asdict(self._config))}",
                get_if_exists=True,
                lifetime="detached",
                max_restarts=0,
                max_concurrency=1000,  # many callers may wait for a restart
                **options,
            )
            .remote(self._config, self._placement.start_seconds)
        )


def connect(config: VllmServerConfig, placement: ServerPlacement) -> JudgeService:
    """Return the server of these settings: the shared one of the cluster, or one of this process without a cluster."""
    if ray.is_initialized():
        return SharedService(config, placement)
    return _local_service(config, placement.start_seconds)


@cache
def _local_service(config: VllmServerConfig, start_seconds: float) -> LocalService:
    return LocalService(config, start_seconds)
