"""Signs of life of a pool's members, given by a thread beside their work and kept by Ray's own store.

A member that works for an hour beats; one whose process is stopped, or whose interpreter hangs, does not. Ray's
concurrency groups would be the usual way to ask a busy actor, but an actor that has one no longer runs its methods in
the main thread, where torch, DeepSpeed and vLLM keep state.
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

BEAT_SECONDS = 2.0
"""Between two beats of a member, and between two looks at them."""


def beat(actor_id: str) -> None:
    """Starts the thread that beats for as long as this process lives."""

    def beats() -> None:
        for number in count():
            with suppress(Exception):  # Ray's store is away for a moment, or for good, and then so is this process
                _internal_kv_put(_key(actor_id), str(number).encode())
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=beats, name="beat", daemon=True).start()


class HeartbeatMonitor:
    """Looks at the beats of a fleet's members."""

    def __init__(self, fleet: ReplicaSet, seconds: float) -> None:
        """seconds: how long a member may be silent."""
        self._fleet, self._seconds = fleet, seconds
        self._next = 0.0

    def listen(self, actors: Mapping[str, Any], now: float) -> list[str]:
        """Looks when it is time. Returns who has been silent for too long: it has stopped, whatever it is thought to be
        doing."""
        if now < self._next:
            return []
        self._next = now + BEAT_SECONDS
        try:
            signs = _signs({name: actors[name] for name in self._fleet.of(*UP)})
        except RayError:
            self._fleet.deaf(now)  # it is the store that is silent
            return []
        for name, sign in signs.items():
            self._fleet.beat(name, sign, now)
        return self._fleet.silent(now, self._seconds)


def _signs(actors: Mapping[str, Any]) -> dict[str, bytes | None]:
    """The newest beat of each, in one question to the store: one a member takes a millisecond each, of the thread that
    hands out work."""
    keys = {name: _key(actor._actor_id.hex()).encode() for name, actor in actors.items()}
    client: Any = internal_kv.global_gcs_client  # what the functions of that module ask, and none of them asks for many
    found = client.internal_kv_multi_get(list(keys.values()), None) if keys else {}
    return {name: found.get(key) for name, key in keys.items()}


def delete_heartbeats(actor: Any) -> None:
    """It is gone."""
    with suppress(RayError):
        _internal_kv_del(_key(actor._actor_id.hex()))


def _key(actor_id: str) -> str:
    return f"duet-beat-{actor_id}"
