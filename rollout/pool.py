"""The pool of rollout workers: dispatches prompts, sends weights, and rejects workers that do not hold them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from cluster.actor_pool import ActorPool, SpeechPool
from cluster.placement import Placement
from cluster.pool_calls import ActorPoolConfig, WeightUpdateRequest
from cluster.replica_state import UP
from cluster.task_queue import Results, TaskFailed, TaskQueue
from rollout.vllm_engine import EngineConfig, RolloutRequest, SamplingConfig, process_environment
from rollout.worker import RolloutResult, RolloutWorker, SyncReport, WeightCheck
from speech.families import Family
from speech.types import Prompt, Reply
from weight_sync.update import WeightUpdate

MIN_RUN_S = 0.2
"""Shortest time that a worker generates before it returns results and takes new prompts."""
MAX_RESULTS_PER_S = 100.0
"""Results of all workers together. In a large pool each worker generates for longer, to limit the controller's load."""


MAX_WAITS = 4
"""Consecutive waits for other processes within the deadline of a broadcast: for the membership, at most twice as long
as the others, for the group, for a broadcast."""


class WeightBroadcaster(Protocol):
    """Sends weights to the receivers that join a broadcast."""

    def can_broadcast(self) -> bool:
        """Whether it can now: it does nothing else."""

    def broadcast(self, parcel: WeightUpdate, receivers: Sequence[str], timeout_s: float) -> WeightUpdate:
        """Has it call these, of which none waits longer than so for another. Returns what brings them there."""


class StaleWeights(RuntimeError):
    """A worker took new weights but does not compute what the learner computes."""


@dataclass(frozen=True, kw_only=True)
class RolloutPoolConfig:
    num_workers: int
    resources: Mapping[str, float]
    """Ray resources of each worker."""
    start_timeout_s: float
    """Deadline for an engine to start."""
    generate_timeout_s: float
    """Deadline for a result of a worker that generates."""
    max_groups: int
    """Groups in flight per worker."""
    sync_timeout_s: float
    """Deadline for taking new weights."""
    max_logprob_diff: float
    """Largest allowed difference of a log-probability between worker and learner in the weight check, nats."""
    heartbeat_timeout_s: float
    """Longest time without a heartbeat."""
    metrics_host: str
    """Host of the metrics servers: see `rollout.metrics_server`."""
    fixed: bool = False
    """Workers keep the weights of their checkpoint: they get no updates, and generate from the start."""


class RolloutPool(SpeechPool):
    """Rollout workers by name. Call `begin` and `start`, then `update` before the first `submit`, unless weights are
    fixed.

    A worker that dies is replaced, and another one generates its groups. Seeds belong to prompts, so the replies are
    the same on any worker with the same weights.
    """

    def __init__(
        self,
        config: RolloutPoolConfig,
        engine: EngineConfig,
        family: Family,
        seed: int,
        emit_event: Callable[..., None],
        pools: list[ActorPool] | None = None,
    ) -> None:
        """emit_event: takes a kind and fields. pools: see `ActorPool`."""
        self._config, self._ranks = config, engine.tensor_parallel_size
        self._warm_up: tuple[list[Prompt], int, SamplingConfig] | None = None
        self._reports: dict[tuple[str, int], SyncReport] = {}
        """Newest report by name and incarnation of a worker."""
        self._requests: dict[int, RolloutRequest] = {}
        """Requests whose groups are incomplete."""
        self._missing: dict[int, set[int]] = {}
        """Indices of the replies that they lack."""
        self._new: list[tuple[int, Reply]] = []
        home = ray.util.get_node_ip_address()
        environment = {"env_vars": process_environment(engine)}

        def create(name: str, place: Placement) -> Any:
            remote = ray.remote(RolloutWorker).options(runtime_env=environment, **place.options())
            return remote.remote(name, engine, family, seed + int(name.rpartition("-")[2]), config.metrics_host, home)

        self._actor_pool = ActorPool(
            ActorPoolConfig(
                role="rollout",
                num_replicas=config.num_workers,
                start_timeout_s=config.start_timeout_s,
                update_timeout_s=config.sync_timeout_s,
                task_timeout_s=config.generate_timeout_s,
                heartbeat_timeout_s=config.heartbeat_timeout_s,
                needs_update=not config.fixed,
                resources=config.resources,
            ),
            create=create,
            warm_up=lambda worker: worker.warm_up.remote(*self._warm_up),
            emit_event=emit_event,
            pools=pools,
        )
        self._queue = TaskQueue(
            self._call, "generating replies", read_results=self._read, max_in_flight=config.max_groups
        )
        self._actor_pool.add_queue(self._queue)

    def begin(self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig, *, strict: bool = True) -> None:
        """Begin to start all engines, each with one warm-up generation. strict: an engine that fails ends the start."""
        self._warm_up = (prompts, group_size, sampling)
        self._actor_pool.begin(strict=strict)

    def start(self, *, strict: bool = True) -> None:
        """Wait until all engines have started."""
        self._actor_pool.start(strict=strict)

    def submit(self, prompt: Prompt, group_size: int, sampling: SamplingConfig, seed: int) -> int:
        """Queue a group for generation. Return its number; `replies` returns its replies one by one."""
        number = self._queue.add(f"prompt {prompt.id}")
        self._requests[number] = RolloutRequest(
            number=number, prompt=prompt, group_size=group_size, sampling=sampling, seed=seed
        )
        self._missing[number] = set(range(group_size))
        return number

    def replies(self) -> list[tuple[int, Reply]]:
        """Return replies since the last call, each once, with the number of its request."""
        self._queue.leases.collect()
        replies, self._new = self._new, []
        return replies

    def abort_all(self) -> None:
        """Abort all requests."""
        self._queue.cancel()
        self._queue.leases.collect()
        for part in (self._requests, self._missing, self._new):
            part.clear()
        self._actor_pool.notify_all(lambda worker: worker.abort_all.remote())

    def _call(self, worker: Any, tasks: list[int]) -> ray.ObjectRef:
        duration_s = max(MIN_RUN_S, len(self.names) / MAX_RESULTS_PER_S)
        return worker.run_for.remote([self._requests[task] for task in tasks], duration_s)

    def _read(self, result: RolloutResult, tasks: tuple[int, ...]) -> Results:
        """Complete groups. A reply that arrives twice, of a group that was requeued, counts once."""
        for number, reply in result.replies:
            missing = self._missing.get(number, set())
            if reply.index in missing:
                missing.remove(reply.index)
                self._new.append((number, reply))
                if not missing:
                    del self._requests[number], self._missing[number]
                    yield number, None
        for number, reason in result.rejected:
            if number in self._requests:
                yield number, TaskFailed(reason)

    def update(
        self,
        parcel: WeightUpdate,
        mix: float | None,
        probe: WeightCheck,
        *,
        strict: bool = False,
        broadcaster: WeightBroadcaster | None = None,
    ) -> dict[str, SyncReport]:
        """Send weights and λ to every worker.

        Args:
            strict: Raise for a worker that cannot take them, instead of replacing it.
            broadcaster: Sender of broadcast weights, also to workers that start later.

        Raises:
            StaleWeights: Log-probabilities differ from the learner's.
        """

        def check(name: str, report: SyncReport) -> None:
            check_probe(name, report, parcel.version, self._config.max_logprob_diff)
            self._reports[name, self._actor_pool.replicas.by_name[name].incarnation] = report

        def call(parcel: WeightUpdate) -> Callable[[Any], ray.ObjectRef]:
            return lambda worker: worker.update.remote(parcel, mix, probe)

        doing = f"taking weights {parcel.version}"
        if broadcaster is None or parcel.call is None:
            request = WeightUpdateRequest(check=check, doing=doing, call=call(parcel))
            return self._actor_pool.update_all(request, strict=strict)
        rounds = BroadcastUpdate(
            broadcaster=broadcaster,
            parcel=parcel,
            call=call,
            ranks=self._ranks,
            timeout_s=self._config.sync_timeout_s / MAX_WAITS,
        )
        request = WeightUpdateRequest(check=check, doing=doing, rounds=rounds)
        return self._actor_pool.update_all(request, strict=strict)

    @property
    def metrics(self) -> dict[str, str]:
        """Addresses of the metrics servers of workers that are up (`rollout.metrics_server`), by name. Thread-safe."""
        return {name: report.metrics for name, report in self._up().items() if report.metrics is not None}

    @property
    def oldest_version(self) -> int | None:
        """Oldest weight version last reported by a worker that is up. Thread-safe."""
        return min((report.version for report in self._up().values()), default=None)

    def _up(self) -> dict[str, SyncReport]:
        """Return the newest reports of workers that are up."""
        up = [replica for replica in list(self._actor_pool.replicas.by_name.values()) if replica.state in UP]
        found = {replica.name: self._reports.get((replica.name, replica.incarnation)) for replica in up}
        return {name: report for name, report in found.items() if report is not None}


@dataclass(frozen=True, kw_only=True)
class BroadcastUpdate:
    """Rounds (`cluster.pool_calls.BroadcastRounds`) that send weights to stale workers."""

    broadcaster: WeightBroadcaster
    parcel: WeightUpdate
    call: Callable[[WeightUpdate], Callable[[Any], ray.ObjectRef]]
    """Makes a worker take an update."""
    ranks: int
    """Tensor-parallel processes of each engine; each is a receiver."""
    timeout_s: float
    """Longest wait of one process for another."""

    def free(self) -> bool:
        return self.broadcaster.can_broadcast()

    def begin(self, names: Sequence[str]) -> Callable[[Any], ray.ObjectRef]:
        seats = [f"{name}/{rank}" for name in names for rank in range(self.ranks)]
        return self.call(self.broadcaster.broadcast(self.parcel, seats, self.timeout_s))


def check_probe(name: str, report: SyncReport, version: int, max_logprob_diff: float) -> None:
    """Raise StaleWeights if a worker holds another version than `version`, or its log-probabilities differ from the
    learner's by more than `max_logprob_diff`."""
    if report.version != version:
        raise StaleWeights(f"{name} reports weights {report.version} instead of {version}")
    if not report.logprob_diff <= max_logprob_diff:  # also catches not-a-number
        raise StaleWeights(
            f"{name} does not hold weights {report.version}: its log-probabilities differ from the learner's by "
            f"{report.logprob_diff:.3g}; allowed: {max_logprob_diff:.0e}"
        )
