"""Which fault comes when. Pure."""

import random
from dataclasses import dataclass

KINDS = {
    "rollout": "SIGKILL to a rollout worker",
    "engine": "SIGKILL to the engine process of a rollout worker",
    "reward": "SIGKILL to a reward server",
    "learner": "SIGKILL to a learner rank",
    "controller": "SIGKILL to the controller",
    "driver": "SIGKILL to the driver, then `duet train --resume`",
    "stall": "SIGSTOP to a rollout worker",
    "judge-error": "the judge answers HTTP 500",
    "judge-garbage": "the judge answers random bytes",
    "judge-wrong": "the judge's scores are no numbers of the scale",
    "judge-slow": "the judge answers too late",
    "disk": "the disk is full when a checkpoint is written",
    "node": "a node leaves the cluster, and another joins",
}
FULL = (
    *("rollout", "engine", "reward", "learner", "controller") * 2,
    "driver",
    "stall",
    *("judge-error", "judge-garbage", "judge-wrong", "judge-slow"),
    "disk",
    "node",
)
"""Each kind of process at least twice. A killed controller is replaced by its driver; with a killed driver the
controller dies too, and both come back by a resumed run."""


@dataclass(frozen=True)
class Fault:
    iteration: int
    """Done once this iteration is on record, while the next one runs."""
    kind: str
    delay: float
    """Seconds into the next iteration."""


def schedule(kinds: tuple[str, ...], iterations: int, seed: int, longest_delay: float = 2.0) -> list[Fault]:
    """The faults in an order that the seed decides, spread over all iterations but the first and the last two."""
    dice = random.Random(seed)
    order = list(kinds)
    dice.shuffle(order)
    last = iterations - 2
    places = [1 + round(place * (last - 1) / max(1, len(order) - 1)) for place in range(len(order))]
    return [Fault(i, kind, dice.uniform(0.0, longest_delay)) for i, kind in zip(places, order, strict=True)]
