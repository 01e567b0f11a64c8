"""Waiting for Ray actors. Nothing waits for ever, and whoever waits says for whom and how long."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError


class Overdue(RuntimeError):
    """A member did not answer before its deadline."""


class MemberFailed(RuntimeError):
    """A member died, or its work raised an error."""


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
            raise Overdue(f"{', '.join(late)}: no answer within {seconds:.0f} s while {doing}")
        name = next(name for name, answer in answers.items() if answer == done[0])
        _result(name, done[0], doing)
    return {name: _result(name, answer, doing) for name, answer in answers.items()}


def _result(name: str, answer: ray.ObjectRef, doing: str) -> Any:
    try:
        return ray.get(answer)
    except RayActorError as error:
        raise MemberFailed(f"{name} died while {doing}: {error}") from error
    except RayTaskError as error:
        raise MemberFailed(f"{name} failed while {doing}: {error.cause!r}\n{error}") from error
