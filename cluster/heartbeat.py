"""Heartbeats of actors: a thread in each actor writes them to Ray's key-value store, the pool reads them.

A busy actor sends heartbeats; a stopped process or a hung interpreter does not. Ray's concurrency groups would be the
usual way to ask a busy actor, but an actor that has one no longer runs its methods in the main thread, where torch,
DeepSpeed and vLLM keep state.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Any

from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

from cluster.replica_state import UP, ReplicaSet

INTERVAL_S = 2.0
"""Between two heartbeats of an actor, and between two checks."""


def start_heartbeat(actor_id: str) -> None:
    """Start the thread that sends heartbeats until this process ends."""

    def send() -> None:
        for number in count():
            with suppress(Exception):  # Ray's store is unreachable; if for good, Ray ends this process
                _internal_kv_put(_key(actor_id), str(number).encode())
            time.sleep(INTERVAL_S)

    threading.Thread(target=send, name="heartbeat", daemon=True).start()


class HeartbeatMonitor:
    """Checks the heartbeats of a pool's actors."""

    def __init__(self, replicas: ReplicaSet, timeout_s: float) -> None:
        """timeout_s: longest time without a heartbeat."""
        self._replicas, self._timeout_s = replicas, timeout_s
        self._next = 0.0

    def check(self, actors: Mapping[str, Any], now: float) -> list[str]:
        """Return actors without a heartbeat for `timeout_s`. Does nothing until `INTERVAL_S` after the last check."""
        if now < self._next:
            return []
        self._next = now + INTERVAL_S
        try:
            heartbeats = _read_heartbeats({name: actors[name] for name in self._replicas.names_in(*UP)})
        except RayError:
            self._replicas.reset_heartbeats(now)  # the store is unreachable
            return []
        for name, heartbeat in heartbeats.items():
            self._replicas.record_heartbeat(name, heartbeat, now)
        return self._replicas.timed_out(now, self._timeout_s)


def _read_heartbeats(actors: Mapping[str, Any]) -> dict[str, bytes | None]:
    """Return the newest heartbeat of each actor, in one request: single requests take a millisecond each, in the
    thread that dispatches tasks."""
    keys = {name: _key(actor._actor_id.hex()).encode() for name, actor in actors.items()}
    client: Any = internal_kv.global_gcs_client  # the module's public functions read one key at a time
    found = client.internal_kv_multi_get(list(keys.values()), None) if keys else {}
    return {name: found.get(key) for name, key in keys.items()}


def delete_heartbeats(actor: Any) -> None:
    """Delete the heartbeat of a dead actor from the store."""
    with suppress(RayError):
        _internal_kv_del(_key(actor._actor_id.hex()))


def _key(actor_id: str) -> str:
    return f"duet-beat-{actor_id}"
