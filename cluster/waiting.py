"""Waits for results of Ray actors. Every wait has a deadline, and its error names the actor and the activity."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from cluster.post_mortem import PostMortem, describe

FETCH_TIMEOUT_S = 120.0
"""Timeout of transferring a finished result: the node that holds it may die."""


class CallTimeout(RuntimeError):
    """An actor missed its deadline."""


class ActorFailed(RuntimeError):
    """An actor died, or its method raised."""

    post_mortem: PostMortem | None = None
    """Set if the actor died. Its log lines may hold secrets: redact before writing."""


class ActorUnusable(RuntimeError):
    """Raised by an actor whose process lives but must be replaced."""


class SyncInterrupted(RuntimeError):
    """Raised by an actor that got only a part of an update. It continues once the same update is sent again."""


def gather(refs: Mapping[str, ray.ObjectRef], timeout_s: float, doing: str) -> dict[str, Any]:
    """Return the results of all actors by name.

    Args:
        refs: Pending result by actor name.
        timeout_s: Deadline of all results together.
        doing: Activity, for messages: "sampling replies".

    Raises:
        CallTimeout: A result is late. The message names the actors.
        ActorFailed: An actor died, or its method raised.
    """
    pending = list(refs.values())
    deadline = time.monotonic() + timeout_s
    while pending:
        # Stop at the first failure: the other actors may be waiting for the dead one.
        done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            late = [name for name, ref in refs.items() if ref in pending]
            raise CallTimeout(f"{', '.join(late)}: no answer within {timeout_s:.0f} s while {doing}")
        name = next(name for name, ref in refs.items() if ref == done[0])
        _result(name, done[0], doing)
    return {name: _result(name, ref, doing) for name, ref in refs.items()}


def _result(name: str, ref: ray.ObjectRef, doing: str) -> Any:
    try:
        return ray.get(ref, timeout=FETCH_TIMEOUT_S)
    except GetTimeoutError as error:
        raise CallTimeout(f"{name}: its result was not fetched within {FETCH_TIMEOUT_S:.0f} s while {doing}") from error
    except (RayActorError, OutOfMemoryError) as error:
        found = describe(error)
        failure = ActorFailed(f"{name} died while {doing}: {found}")
        failure.post_mortem = found
        raise failure from error
    except RayTaskError as error:
        raise ActorFailed(f"{name} failed while {doing}: {error.cause!r}\n{error}") from error
