"""What ranks still owe, and which of them have died of it."""

import time
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.postmortem import describe


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """Something that all ranks were asked to do together."""

    answers: dict[str, ray.ObjectRef]
    deadline: float
    """In the clock of `time.monotonic`."""

    def settled(self) -> bool:
        """Whether nobody has to wait: all ranks have answered, one has failed, or it is too late."""
        if time.monotonic() >= self.deadline:
            return True
        answers = list(self.answers.values())
        answered, others = ray.wait(answers, num_returns=len(answers), timeout=0)
        return not others or any(map(_failed, answered))

    @property
    def seconds(self) -> float:
        """Until the deadline."""
        return max(0.0, self.deadline - time.monotonic())


def _failed(answer: ray.ObjectRef) -> bool:
    """Of one that is there."""
    try:
        ray.get(answer)
    except RayError:
        return True
    return False


def done(answer: ray.ObjectRef) -> bool:
    return bool(ray.wait([answer], timeout=0)[0])


def dead(answers: dict[str, ray.ObjectRef], seconds: float) -> dict[str, str]:
    """Ranks that died, with the reason. The search ends with the first that is found, or when all have answered."""
    deadline = time.monotonic() + seconds
    while True:
        found = {}
        for name, answer in answers.items():
            if done(answer):
                try:
                    ray.get(answer)
                except RayTaskError:
                    continue
                except RayError as error:
                    found[name] = str(describe(error))
        pending = [answer for answer in answers.values() if not done(answer)]
        if found or not pending or time.monotonic() >= deadline:
            return found
        ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
