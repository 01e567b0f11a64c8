"""A fault-tolerant pool of Ray actors: starts them, syncs weights, dispatches tasks, restarts failures.

`cluster.replica_state` and `cluster.task_queue` decide; this module calls Ray. Everything runs in the caller's thread.
`start`, `update_all` and `run` poll until they are done; `poll_once` polls once. Each poll advances all pools that
share a list `pools`: their tasks, and their actors that restart.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.heartbeat import HeartbeatMonitor, delete_heartbeats
from cluster.monitored_actor import ActorIdentity, find_identity
from cluster.placement import Placement, missing_resources
from cluster.pool_calls import ActorPoolConfig, PendingResult, WeightUpdateRequest
from cluster.post_mortem import describe
from cluster.replica_state import PoolStatus, ReplicaSet, ReplicaState
from cluster.stall_watchdog import PendingCall
from cluster.task_queue import MAX_FAILURES, Scheduler, TaskFailed, TaskQueue
from cluster.waiting import FETCH_TIMEOUT_S, ActorFailed, ActorUnusable, SyncInterrupted

POLL_INTERVAL_S = 0.5
"""Longest wait of one poll, hence the delay until a missed deadline is noticed."""
MAX_INTERRUPTIONS = 3
"""Interrupted updates in a row after which the actor is replaced."""


def poll_once(pools: Sequence["ActorPool"], extra: Iterable[ray.ObjectRef] = ()) -> None:
    """Submit due calls, wait up to `POLL_INTERVAL_S` for a result, then handle all results. extra: further refs that
    end the wait."""
    for pool in pools:
        pool.submit()
    pending = [*extra, *(ref for pool in pools for ref in pool.pending)]
    if pending:
        ray.wait(pending, num_returns=1, timeout=POLL_INTERVAL_S)
    else:
        time.sleep(POLL_INTERVAL_S)  # every restart is still backing off
    for pool in pools:
        pool.handle_results()


class ActorPool:
    """Actors by name. Call `start`, then `update_all`, then `run`."""

    def __init__(
        self,
        config: ActorPoolConfig,
        create: Callable[[str, Placement], Any],
        warm_up: Callable[[Any], ray.ObjectRef],
        emit_event: Callable[..., None],
        pools: "list[ActorPool] | None" = None,
    ) -> None:
        """
        Args:
            create: Creates the actor of a name in a placement that is held for it alone.
            warm_up: Makes the first call of an actor. Its result means that the actor has started.
            emit_event: Takes a kind and fields.
            pools: Pools that advance together. This pool appends itself.
        """
        self._pools = [] if pools is None else pools
        self._pools.append(self)
        self._config, self._create, self._warm_up, self._emit_event = config, create, warm_up, emit_event
        self.replicas = ReplicaSet(config.role, config.num_replicas)
        self._heartbeats = HeartbeatMonitor(self.replicas, config.heartbeat_timeout_s)
        self._actors: dict[str, Any] = {}
        self._placements: dict[str, Placement] = {}
        self._pending: dict[ray.ObjectRef, PendingResult] = {}
        self._identities: dict[str, ActorIdentity | None] = {}
        """Needed to find the logs of a dead actor, which Ray may have forgotten by then."""
        self._joining: set[str] = set()
        """Actors started after the pool."""
        self._update: WeightUpdateRequest | None = None
        self._interruptions: Counter[str] = Counter()
        """Interrupted updates in a row, by actor."""
        self._results: dict[str, Any] = {}
        """Results of the newest start or update, by actor."""
        self._begun: float | None = None
        self._strict = False
        """True if a failing actor raises instead of being replaced."""
        self._scheduler = Scheduler()
        self._dispatched = time.monotonic()
        self.busy_seconds = 0.0
        """Time that actors had tasks, summed over actors."""

    @property
    def names(self) -> list[str]:
        """Actors that have tasks or can take some."""
        return self.replicas.names_in(ReplicaState.READY)

    def begin(self, *, strict: bool = True) -> None:
        """Begin to start all actors, without waiting. `start` waits."""
        self._begun, self._strict = time.monotonic(), strict
        self.submit()

    def start(self, *, strict: bool = True) -> dict[str, Any]:
        """Start all actors, unless `begin` did, and wait until all are up. Return their first results.

        strict: a failing actor fails the start, since its replacement would fail the same way. Otherwise (a resumed
        run) it is replaced, and after the start deadline the pool continues with the actors that it has.
        """
        if self._begun is None:
            self.begin(strict=strict)
        deadline = (self._begun or 0.0) + self._config.start_timeout_s
        replicas = self.replicas
        while (missing := replicas.target - len(replicas.names_in(ReplicaState.STALE, ReplicaState.READY))) > 0:
            if not strict and missing < replicas.target and time.monotonic() >= deadline:
                break
            poll_once(self._pools)
        self._strict = False
        return dict(self._results)

    def cancel_pending_starts(self) -> None:
        """Cancel starts that still wait for resources, to free them for the learner."""
        for name in self.replicas.names_in(ReplicaState.STARTING):
            if not self._placements[name].held:
                self._kill(name)
                self.replicas.cancel_start(name)

    def update_all(self, update: WeightUpdateRequest, *, strict: bool = False) -> dict[str, Any]:
        """Send an update to all actors and wait until all that are up have taken it. Return their results. strict: see
        `start`."""
        self._update, self._results = update, {}
        self.replicas.mark_stale(time.monotonic())
        for name in self.replicas.names_in(ReplicaState.STALE):
            self._send_update(name)
        self._strict = strict
        while self.replicas.names_in(ReplicaState.STALE) or not self.replicas.names_in(ReplicaState.READY):
            poll_once(self._pools)
        self._strict = False
        return dict(self._results)

    def add_queue(self, queue: TaskQueue) -> None:
        """Dispatch tasks from this queue, also those added later. Queues are served in the order of this call."""
        self._scheduler.add(queue)

    def remove_queue(self, queue: TaskQueue) -> None:
        """Stop serving a queue. Results that arrive later are dropped."""
        self._scheduler.remove(queue)

    def run(self, tasks: Sequence[str], call: Callable[[Any, list[int]], ray.ObjectRef], doing: str) -> list[Any]:
        """Run tasks, given by name, in batches on ready actors. Return one result per task, in order.

        call: makes an actor run some tasks, given by index; its result is a list, one per task. Raises ActorFailed if a
        task raises repeatedly, CallTimeout if a task loses actor after actor.
        """
        queue = TaskQueue(call, doing)
        for name in tasks:
            queue.add(name)
        self.add_queue(queue)
        try:
            while queue.leases.unfinished:
                poll_once(self._pools)
            results = queue.leases.collect()
            return [results[task] for task in range(len(tasks))]
        finally:
            self.remove_queue(queue)

    def notify_all(self, call: Callable[[Any], object]) -> None:
        """Send a fire-and-forget call to every actor."""
        for actor in self._actors.values():
            call(actor)

    def resize(self, num_replicas: int) -> None:
        """Set the target size. Later polls start new actors, or drain and remove surplus ones."""
        if num_replicas != self.replicas.target:
            self._emit_event("pool_resized", pool=self._config.role, before=self.replicas.target, after=num_replicas)
            self.replicas.resize(num_replicas)

    def status(self) -> PoolStatus:
        """Return the pool's status. Thread-safe."""
        replicas = self.replicas
        return PoolStatus(
            target=replicas.target,
            replicas=Counter(replica.state for replica in list(replicas.by_name.values())),
            restarts=replicas.restarts,
            in_flight=self._scheduler.in_flight,
            queued=self._scheduler.queued,
        )

    def pending_calls(self) -> list[PendingCall]:
        """Return every actor with its pending call, if any. Thread-safe."""
        pending = {call.name: call for call in list(self._pending.values())}
        return [
            PendingCall(name=name, actor=actor, doing=pending[name].doing, since=pending[name].since)
            if name in pending
            else PendingCall(name=name, actor=actor)
            for name, actor in list(self._actors.items())
        ]

    def stop(self) -> None:
        """Kill all actors."""
        if self in self._pools:
            self._pools.remove(self)
        for name in list(self._actors):
            self._kill(name)

    # ---- one poll

    @property
    def pending(self) -> list[ray.ObjectRef]:
        """Refs of results that have not arrived."""
        return list(self._pending)

    def submit(self) -> None:
        """Start due actors, remove drained ones and dispatch tasks: the first half of a poll."""
        now = time.monotonic()
        if self._begun is None:
            return  # polled for another pool of `pools`
        for name in self.replicas.due(now):
            self._start(name, now)
        self._begin_round()
        self._drain(now)
        self._dispatch(now)

    def handle_results(self) -> None:
        """Handle results that have arrived, then check deadlines and heartbeats: the second half of a poll."""
        # Results before deadlines: the caller may have been away for longer than a deadline.
        if self._pending:
            for ref in ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)[0]:
                if (call := self._pending.pop(ref, None)) is not None:
                    self._handle_result(ref, call)
        self._check_deadlines(time.monotonic())
        for name in self._heartbeats.check(self._actors, time.monotonic()):
            incarnation = self.replicas.by_name[name].incarnation
            call = PendingResult(name=name, incarnation=incarnation, doing="", since=0.0, deadline=0.0)
            self._replace(call, f"no heartbeat for {self._config.heartbeat_timeout_s:g} s")

    def _start(self, name: str, now: float) -> None:
        replica = self.replicas.mark_starting(name, now)
        self._placements[name] = Placement(name, self._config.resources)
        self._actors[name] = self._create(name, self._placements[name])
        if not self._strict:
            self._joining.add(name)
            self._emit_event("actor_starting", member=name, incarnation=replica.incarnation)
        ref = self._warm_up(self._actors[name])
        self._track(name, ref, "starting", self._config.start_timeout_s, is_start=True)

    def _drain(self, now: float) -> None:
        for name in self.replicas.surplus():
            self.replicas.mark_draining(name, now)
        for name in self.replicas.names_in(ReplicaState.DRAINING):
            if not self._scheduler.num_held(name):
                self._kill(name)
                self.replicas.remove(name)
                self._emit_event("actor_removed", member=name)

    def _dispatch(self, now: float) -> None:
        calls = Counter((p.queue, p.name) for p in self._pending.values() if p.queue is not None)
        self.busy_seconds += (now - self._dispatched) * len({name for _, name in calls})
        self._dispatched = now
        ready, draining = (self.replicas.names_in(s) for s in (ReplicaState.READY, ReplicaState.DRAINING))
        for queue, name, tasks in self._scheduler.assign(calls, ready, draining):
            ref = queue.call(self._actors[name], list(tasks))
            self._track(name, ref, queue.doing, self._config.task_timeout_s, queue=queue, tasks=tasks)

    def _send_update(self, name: str) -> None:
        update = self._update
        if update is not None and update.call is not None:
            ref = update.call(self._actors[name])
            self._track(name, ref, update.doing, self._config.update_timeout_s, update=update)

    def _begin_round(self) -> None:
        """Begin a broadcast to all stale actors, if the update is broadcast and the sender is free."""
        update = self._update
        if update is None or update.rounds is None:
            return
        receiving = {call.name for call in self._pending.values() if call.update is update}
        stale = [name for name in self.replicas.names_in(ReplicaState.STALE) if name not in receiving]
        if stale and update.rounds.free():
            receive = update.rounds.begin(stale)
            for name in stale:
                ref = receive(self._actors[name])
                self._track(name, ref, update.doing, self._config.update_timeout_s, update=update)

    def _track(self, name: str, ref: ray.ObjectRef, doing: str, timeout_s: float, **fields: Any) -> None:
        now, incarnation = time.monotonic(), self.replicas.by_name[name].incarnation
        self._pending[ref] = PendingResult(
            name=name, incarnation=incarnation, doing=doing, since=now, deadline=now + timeout_s, **fields
        )

    # ---- results

    def _handle_result(self, ref: ray.ObjectRef, call: PendingResult) -> None:
        try:
            value = ray.get(ref, timeout=FETCH_TIMEOUT_S)
        except RayTaskError as error:
            unusable = isinstance(error.cause, ActorUnusable)
            if call.update is not None and call.update is not self._update and not unusable:
                return  # of weights that are replaced; a newer update is under way
            if isinstance(error.cause, SyncInterrupted) and self._tolerate_interruption(call, error.cause):
                return  # the actor takes part in the next round
            if call.queue is not None and not unusable:
                self._on_task_error(call.queue, call, error)
            else:
                self._replace(call, f"failed while {call.doing}: {error.cause!r}", error)
            return
        except RayError as error:
            cause = describe(error, self._identities.get(call.name))
            self._replace(call, f"died while {call.doing}: {cause}", error, cause.log_tail)
            return
        if call.queue is not None:
            self._on_task_results(call.queue, call, value)
        elif call.update is None:
            self._on_started(call.name, value)
        elif call.update is self._update:  # otherwise a newer update was sent since
            self._on_updated(call, call.update, value)

    def _tolerate_interruption(self, call: PendingResult, reason: SyncInterrupted) -> bool:
        self._interruptions[call.name] += 1
        self._emit_event("sync_interrupted", member=call.name, doing=call.doing, reason=str(reason))
        return self._interruptions[call.name] < MAX_INTERRUPTIONS

    def _on_started(self, name: str, value: Any) -> None:
        now = time.monotonic()
        if self._update is None:
            self._results[name] = value
        with suppress(RayError):  # used for the post-mortem only
            self._identities[name] = find_identity(self._actors[name])
        self.replicas.mark_started(name, now)
        if self._config.needs_update:
            self._send_update(name)
        else:
            self._on_ready(name, now)

    def _on_updated(self, call: PendingResult, update: WeightUpdateRequest, value: Any) -> None:
        try:
            update.check(call.name, value)
        except RuntimeError as error:
            replicas = self.replicas
            if not replicas.names_in(ReplicaState.READY) and replicas.names_in(ReplicaState.STALE) == [call.name]:
                raise  # every actor failed the check, so this actor is not the cause
            self._replace(call, str(error), tolerate=True)
            return
        self._results[call.name] = value
        self._on_ready(call.name, time.monotonic())

    def _on_ready(self, name: str, now: float) -> None:
        self.replicas.mark_ready(name, now)
        self._interruptions.pop(name, None)
        if name in self._joining:
            self._joining.discard(name)
            self._emit_event("actor_ready", member=name, incarnation=self.replicas.by_name[name].incarnation)

    def _on_task_results(self, queue: TaskQueue, call: PendingResult, value: Any) -> None:
        if queue not in self._scheduler:
            return
        for task, result in queue.read_results(value, call.tasks):
            if isinstance(result, TaskFailed):
                queue.leases.release(task)
                self._record_failures(queue, (task,), call, result.error)
            else:
                queue.complete(task, result)

    def _on_task_error(self, queue: TaskQueue, call: PendingResult, error: RayTaskError) -> None:
        """Requeue the tasks of a call that raised. The actor continues."""
        if queue in self._scheduler:
            tasks = queue.leases.requeue(call.name)
            self._record_failures(queue, tasks, call, f"{error.cause!r}\n{error}", error)

    def _record_failures(
        self, queue: TaskQueue, tasks: tuple[int, ...], call: PendingResult, error: str, cause: Exception | None = None
    ) -> None:
        if exhausted := queue.record_failures(tasks):
            raise ActorFailed(
                f"{call.name} failed while {call.doing}, {MAX_FAILURES} times with each of {exhausted}: {error}"
            ) from cause
        self._emit_event("task_failed", member=call.name, doing=call.doing, error=error.partition("\n")[0])

    def _check_deadlines(self, now: float) -> None:
        for ref, call in list(self._pending.items()):
            if now < call.deadline or ref not in self._pending:
                continue
            if call.is_start and not self._placements[call.name].held:
                missing = missing_resources(self._config.resources)
                if self._strict:
                    raise ActorFailed(f"{call.name} cannot start: {missing}")
                self._emit_event("waiting_for_resources", member=call.name, reason=missing)
                self._pending[ref] = replace(call, deadline=now + self._config.start_timeout_s)
            else:
                self._replace(call, f"missed its deadline while {call.doing}")

    def _replace(
        self,
        call: PendingResult,
        reason: str,
        error: Exception | None = None,
        log_tail: tuple[str, ...] = (),
        *,
        tolerate: bool = False,
    ) -> None:
        """Mark an actor as dead and requeue its tasks; the next poll starts a replacement. tolerate: do so in strict
        mode too, instead of raising."""
        name = call.name
        replica = self.replicas.by_name.get(name)
        if replica is None or replica.incarnation != call.incarnation:
            return
        if self._strict and not tolerate:
            raise ActorFailed(f"{name} {reason}") from error
        requeued = self._scheduler.requeue(name)
        self._kill(name)
        self.replicas.mark_dead(name, reason, time.monotonic())
        self._emit_event(
            "actor_died",
            member=name,
            incarnation=replica.incarnation,
            reason=reason,
            items=requeued,
            log=list(log_tail),
        )

    def _kill(self, name: str) -> None:
        actor = self._actors.pop(name)
        ray.kill(actor)
        self._placements.pop(name).release()
        delete_heartbeats(actor)
        self._pending = {ref: call for ref, call in self._pending.items() if call.name != name}
        self._interruptions.pop(name, None)
        self._joining.discard(name)


class SpeechPool:
    """Base of the rollout, reward and decoder pools: the calls that do not depend on what the actors do."""

    _actor_pool: ActorPool

    @property
    def names(self) -> list[str]:
        """Actors that can take tasks. Actors that need weights count once they hold the newest."""
        return self._actor_pool.names

    @property
    def target(self) -> int:
        """Target number of actors."""
        return self._actor_pool.replicas.target

    @property
    def busy_seconds(self) -> float:
        """Time that actors had tasks, summed over actors."""
        return self._actor_pool.busy_seconds

    def resize(self, num_replicas: int) -> None:
        """Set the target number of actors."""
        self._actor_pool.resize(num_replicas)

    def cancel_pending_starts(self) -> None:
        """Cancel starts that still wait for resources."""
        self._actor_pool.cancel_pending_starts()

    def status(self) -> PoolStatus:
        """Return the pool's status. Thread-safe."""
        return self._actor_pool.status()

    def pending_calls(self) -> list[PendingCall]:
        """Return every actor with its pending call, if any."""
        return self._actor_pool.pending_calls()

    def stop(self) -> None:
        """Kill all actors."""
        self._actor_pool.stop()
