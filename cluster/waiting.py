"""Waiting for Ray actors. Nothing waits for ever, and whoever waits says for whom and how long."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from cluster.post_mortem import PostMortem, describe

FETCH_SECONDS = 120.0
"""For an answer that is there to come over: the node that has it may die meanwhile."""


class CallTimeout(RuntimeError):
    """A member did not answer before its deadline."""


class ActorFailed(RuntimeError):
    """A member died, or its work raised an error."""

    post_mortem: PostMortem | None = None
    """Of one that died, log lines included: whoever writes those down takes secrets out of them."""


class ActorUnusable(RuntimeError):
    """Raised by a member that cannot go on: its process lives, but it must be replaced as if it had died."""


class SyncInterrupted(RuntimeError):
    """Raised by a member that was not given the whole of what is new, by no fault of its own: it can go on where it was
    as soon as it is given the same again."""


def gather(answers: Mapping[str, ray.ObjectRef], seconds: float, doing: str) -> dict[str, Any]:
    """The answers of all members by name, or the reason why one is missing.

    answers: a pending answer for each member's name.
    seconds: deadline for all of them together.
    doing: what the members were asked to do, for the message ("sampling replies").
    """
    pending = list(answers.values())
    deadline = time.monotonic() + seconds
    while pending:
        # One failure ends the waiting: the others may be waiting for the dead one.
        done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            late = [name for name, answer in answers.items() if answer in pending]
            raise CallTimeout(f"{', '.join(late)}: no answer within {seconds:.0f} s while {doing}")
        name = next(name for name, answer in answers.items() if answer == done[0])
        _result(name, done[0], doing)
    return {name: _result(name, answer, doing) for name, answer in answers.items()}


def _result(name: str, answer: ray.ObjectRef, doing: str) -> Any:
    try:
        return ray.get(answer, timeout=FETCH_SECONDS)
    except GetTimeoutError as error:
        raise CallTimeout(f"{name}: its answer did not come over within {FETCH_SECONDS:.0f} s while {doing}") from error
    except (RayActorError, OutOfMemoryError) as error:
        found = describe(error)
        failure = ActorFailed(f"{name} died while {doing}: {found}")
        failure.post_mortem = found
        raise failure from error
    except RayTaskError as error:
        raise ActorFailed(f"{name} failed while {doing}: {error.cause!r}\n{error}") from error
