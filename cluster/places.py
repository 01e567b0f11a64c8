"""Whether an actor has been given a place in the cluster, and what is lacking when it has not."""

from collections.abc import Mapping
from typing import Any

import ray

from cluster.member import identify


def placed(actor: Any) -> bool:
    """Whether Ray has given it a process; until then it waits for a place."""
    found = identify(actor)
    return found is not None and bool(found.pid)


def lacking(needs: Mapping[str, float]) -> str:
    """Why an actor with these needs, of Ray's resources, waits."""
    free = ray.available_resources()
    short = [f"{amount:g} {what}" for what, amount in needs.items() if free.get(what, 0.0) < amount]
    return f"it needs {', '.join(short)} more than the cluster has free" if short else "no node has room for it"
