"""What members need of a cluster, in Ray's resources. Pure, and importable without torch."""

import math
import re
from operator import attrgetter

from controller.config import Config, Decoders, Learner, Reward, Rollout
from speech.errors import InputError

RESERVED = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that have keys of their own, or that no member asks for."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
ROOM_TO_GROW = 8.0
"""CPUs, and members of each pool by their own resources, that a cluster of our own counts besides: Ray only counts."""


def needs(member: Rollout | Reward | Decoders | Learner) -> dict[str, float]:
    """Resources of one worker, server or rank; what is 0 has no entry."""
    amounts = {"CPU": member.cpus, "GPU": member.gpus, **member.resources}
    return {what: amount for what, amount in amounts.items() if amount}


def roles(config: Config) -> dict[str, tuple[int, dict[str, float]]]:
    """Members at the start and needs of each, by section of the configuration; decoders where there are any."""
    decoders = config.reward.decoders
    return {
        "rollout": (config.rollout.workers, needs(config.rollout)),
        "reward": (config.reward.servers, needs(config.reward)),
        **({"reward.decoders": (decoders.members, needs(decoders))} if decoders.members else {}),
        "learner": (config.learner.ranks, needs(config.learner)),
    }


def check_needs(config: Config) -> None:
    """Raises InputError for needs that no placement group can have."""
    for role, (_, needed) in roles(config).items():
        for name, amount in attrgetter(role)(config).resources.items():
            if not NAME.fullmatch(name) or name in RESERVED:
                raise InputError(
                    f"{role}.resources: {name!r} is not possible; a resource that nodes are started with, by its name, "
                    f"and none of {', '.join(RESERVED)} ({role}.cpus and {role}.gpus say those)"
                )
            if not (math.isfinite(amount) and 0 <= amount <= 1e6):
                raise InputError(f"{role}.resources: {amount} of {name!r} is not possible; from 0 to 1000000")
        if not needed:
            raise InputError(
                f"{role}.cpus: 0, and neither {role}.gpus nor {role}.resources ask for anything; Ray holds a place of "
                "some size only, such as 0.1"
            )


def of_our_own(config: Config, cpus: int) -> tuple[int, dict[str, float]]:
    """CPUs and further resources that a cluster of this one machine, with so many CPUs, is to count."""
    counted: dict[str, float] = {}
    for members, needed in roles(config).values():
        for what, amount in needed.items():
            room = 0.0 if what in RESERVED else ROOM_TO_GROW * amount
            counted[what] = counted.get(what, 0.0) + members * amount + room
    needed_cpus = int(1 + counted.pop("CPU", 0.0))
    counted.pop("GPU", None)  # those that there are, which Ray counts itself
    return max(cpus, needed_cpus) + int(ROOM_TO_GROW), counted
