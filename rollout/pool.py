"""The pool of rollout workers: hands out prompts, passes on weights, and refuses a worker that does not hold them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from cluster.actor_pool import ActorPool, ActorPoolConfig, SpeechPool, WeightUpdateRequest
from cluster.placement import Placement
from cluster.replica_state import UP
from cluster.task_queue import Results, TaskFailed, TaskQueue
from rollout.vllm_engine import EngineConfig, RolloutRequest, SamplingConfig, process_environment
from rollout.worker import RolloutResult, RolloutWorker, SyncReport, WeightCheck
from speech.families import Family
from speech.types import Prompt, Reply
from weight_sync.update import WeightUpdate

TURN_SECONDS = 0.2
"""A worker draws for so long before it answers: how late it is heard, and how late it hears."""
ANSWERS = 100.0
"""A second, of all workers together: with many of them each draws for longer, or the controller would do nothing but
listen."""


WAITS = 4
"""Waits for somebody else, one after the other, that fit into the deadline of a sync by broadcast: for the roll, at
most twice as long as the others, for the group, for a broadcast."""


class WeightBroadcaster(Protocol):
    """Gives weights to those that come when it calls."""

    def can_broadcast(self) -> bool:
        """Whether it can now: it does nothing else."""

    def broadcast(self, parcel: WeightUpdate, receivers: Sequence[str], timeout_s: float) -> WeightUpdate:
        """Has it call these, of which none waits longer than so for another. Returns what brings them there."""


class StaleWeights(RuntimeError):
    """A worker does not compute what the learner computes, although it took the weights."""


@dataclass(frozen=True, kw_only=True)
class RolloutPoolConfig:
    workers: int
    needs: Mapping[str, float]
    """Ray's resources of each worker."""
    start_seconds: float
    """Deadline for engines to start."""
    sample_seconds: float
    """Deadline for an answer of a worker that draws."""
    groups_at_once: int
    """Groups that a worker has in hand at most."""
    sync_seconds: float
    """Deadline for taking new weights."""
    probe_limit: float
    """Largest difference of a log-probability between worker and learner on the probe, nats."""
    beat_seconds: float
    """How long a worker may give no sign of life."""
    metrics_host: str
    """Where metrics are served: see `rollout.metrics_server`."""
    fixed: bool = False
    """Workers keep the weights of their checkpoint: they are given none, and draw from the start."""


class RolloutPool(SpeechPool):
    """Rollout workers by name. `begin` and `start`, then `update` before the first `order`, unless the weights
    are fixed.

    A worker that dies is replaced, and what it was drawing is drawn by another: the seeds go with the prompts, so the
    replies are the same whoever draws them under the same weights.
    """

    def __init__(
        self,
        settings: RolloutPoolConfig,
        engine: EngineConfig,
        family: Family,
        seed: int,
        tell: Callable[..., None],
        company: list[ActorPool] | None = None,
    ) -> None:
        """tell: takes events, a kind and fields. company: see `ActorPool`."""
        self._settings, self._ranks = settings, engine.tensor_parallel
        self._first: tuple[list[Prompt], int, SamplingConfig] | None = None
        self._reports: dict[tuple[str, int], SyncReport] = {}
        """The newest by name and incarnation of a worker."""
        self._orders: dict[int, RolloutRequest] = {}
        """Those whose groups are not whole."""
        self._missing: dict[int, set[int]] = {}
        """Indices of the replies that they lack."""
        self._fresh: list[tuple[int, Reply]] = []
        home = ray.util.get_node_ip_address()
        environment = {"env_vars": process_environment(engine)}

        def make(name: str, place: Placement) -> Any:
            remote = ray.remote(RolloutWorker).options(runtime_env=environment, **place.options())
            return remote.remote(name, engine, family, seed + int(name.rpartition("-")[2]), settings.metrics_host, home)

        self._crew = ActorPool(
            ActorPoolConfig(
                role="rollout",
                members=settings.workers,
                start_seconds=settings.start_seconds,
                renew_seconds=settings.sync_seconds,
                work_seconds=settings.sample_seconds,
                beat_seconds=settings.beat_seconds,
                renewed=not settings.fixed,
                needs=settings.needs,
            ),
            make=make,
            warm=lambda worker: worker.warm_up.remote(*self._first),
            tell=tell,
            company=company,
        )
        self._job = TaskQueue(self._ask, "drawing replies", read=self._read, room=settings.groups_at_once)
        self._crew.open(self._job)

    def begin(self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig, *, strict: bool = True) -> None:
        """Has every engine start, and sample once. strict: whether one that fails ends the start."""
        self._first = (prompts, group_size, sampling)
        self._crew.begin(strict=strict)

    def start(self, *, strict: bool = True) -> None:
        """Waits until all have."""
        self._crew.start(strict=strict)

    def order(self, prompt: Prompt, group_size: int, sampling: SamplingConfig, seed: int) -> int:
        """A group to be drawn by whoever has room. Returns its number; its replies come one by one."""
        number = self._job.add(f"prompt {prompt.id}")
        self._orders[number] = RolloutRequest(
            number=number, prompt=prompt, group_size=group_size, sampling=sampling, seed=seed
        )
        self._missing[number] = set(range(group_size))
        return number

    def replies(self) -> list[tuple[int, Reply]]:
        """Those that came since the last call, each once, with the number of its order."""
        self._job.leases.collect()
        fresh, self._fresh = self._fresh, []
        return fresh

    def abandon(self) -> None:
        """Gives up everything that was ordered and is not there."""
        self._job.call_off()
        self._job.leases.collect()
        for part in (self._orders, self._missing, self._fresh):
            part.clear()
        self._crew.send(lambda worker: worker.abandon.remote())

    def _ask(self, worker: Any, items: list[int]) -> ray.ObjectRef:
        seconds = max(TURN_SECONDS, len(self.names) / ANSWERS)
        return worker.turn.remote([self._orders[item] for item in items], seconds)

    def _read(self, drawn: RolloutResult, items: tuple[int, ...]) -> Results:
        """Groups that are whole now; what came twice, of a group that was drawn again, counts once."""
        for number, reply in drawn.replies:
            missing = self._missing.get(number, set())
            if reply.index in missing:
                missing.remove(reply.index)
                self._fresh.append((number, reply))
                if not missing:
                    del self._orders[number], self._missing[number]
                    yield number, None
        for number, reason in drawn.refused:
            if number in self._orders:
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
        """Gives every worker these weights and λ. Raises StaleWeights when a probe does not agree.
        strict: whether a worker that cannot take them is an error, and not replaced. broadcaster: who broadcasts them,
        also to workers that come later, where that is how they travel."""

        def check(name: str, report: SyncReport) -> None:
            check_probe(name, report, parcel.version, self._settings.probe_limit)
            self._reports[name, self._crew.fleet.members[name].incarnation] = report

        def call(parcel: WeightUpdate) -> Callable[[Any], ray.ObjectRef]:
            return lambda worker: worker.update.remote(parcel, mix, probe)

        doing = f"taking weights {parcel.version}"
        if broadcaster is None or parcel.call is None:
            return self._crew.renew(WeightUpdateRequest(check=check, doing=doing, call=call(parcel)), strict=strict)
        rounds = BroadcastUpdate(
            broadcaster=broadcaster,
            parcel=parcel,
            call=call,
            ranks=self._ranks,
            seconds=self._settings.sync_seconds / WAITS,
        )
        return self._crew.renew(WeightUpdateRequest(check=check, doing=doing, rounds=rounds), strict=strict)

    @property
    def metrics(self) -> dict[str, str]:
        """Where workers that are up serve their engines' metrics (`rollout.metrics_server`), by name; may be asked from
        another thread."""
        return {name: report.metrics for name, report in self._up().items() if report.metrics is not None}

    @property
    def oldest_version(self) -> int | None:
        """Of the weights that a worker which is up was last seen to hold; may be asked from another thread."""
        return min((report.version for report in self._up().values()), default=None)

    def _up(self) -> dict[str, SyncReport]:
        up = [member for member in list(self._crew.fleet.members.values()) if member.life in UP]
        found = {member.name: self._reports.get((member.name, member.incarnation)) for member in up}
        return {name: report for name, report in found.items() if report is not None}


@dataclass(frozen=True, kw_only=True)
class BroadcastUpdate:
    """Rounds (`cluster.actor_pool.BroadcastRounds`) in which weights go to those workers that lack them."""

    broadcaster: WeightBroadcaster
    parcel: WeightUpdate
    call: Callable[[WeightUpdate], Callable[[Any], ray.ObjectRef]]
    """Has a worker take a parcel."""
    ranks: int
    """Processes of each engine that have a part of the model; each has a seat."""
    seconds: float
    """Longest wait of one for another."""

    def free(self) -> bool:
        return self.broadcaster.can_broadcast()

    def begin(self, names: Sequence[str]) -> Callable[[Any], ray.ObjectRef]:
        seats = [f"{name}/{rank}" for name in names for rank in range(self.ranks)]
        return self.call(self.broadcaster.broadcast(self.parcel, seats, self.seconds))


def check_probe(name: str, report: SyncReport, version: int, limit: float) -> None:
    """Raises StaleWeights when a worker has other weights than it was given, or is further than `limit` from the
    learner."""
    if report.version != version:
        raise StaleWeights(f"{name} says that it holds weights {report.version}; it was given {version}")
    if not report.probe_gap <= limit:  # also catches not-a-number
        raise StaleWeights(
            f"{name} does not hold weights {report.version}: its log-probabilities differ from the learner's by "
            f"{report.probe_gap:.3g} on the probe, allowed is {limit:.0e}"
        )
