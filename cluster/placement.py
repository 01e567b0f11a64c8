"""Resources held for actors, and the resources missing while a placement waits."""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


class Placement:
    """Resources of several actors, one bundle each, as a Ray placement group: all bundles are held, or none.

    The constructor requests the group; actors placed in it start once it is held. It ends with `release`, or with the
    actor that requested it if that one is detached. Ray keeps the groups of other actors until their job ends.
    """

    def __init__(self, name: str, *bundles: Mapping[str, float], strategy: str = "PACK") -> None:
        """
        Args:
            name: Name in `ray list placement-groups`.
            bundles: Amounts of Ray resources.
            strategy: Ray's placement strategy.
        """
        self._bundles = [{what: amount for what, amount in bundle.items() if amount} for bundle in bundles]
        # Ray rejects a name in use, and a removed group keeps its name in use for a while.
        self._group = placement_group(self._bundles, strategy=strategy, name=f"duet-{name}-{uuid.uuid4().hex[:8]}")

    def options(self, bundle: int = 0) -> dict[str, Any]:
        """Return the actor options that take a whole bundle."""
        others = dict(self._bundles[bundle])
        return {
            "num_cpus": others.pop("CPU", 0),
            "num_gpus": others.pop("GPU", 0),
            "resources": others,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        }

    @property
    def resources(self) -> dict[str, float]:
        """Resources of all bundles together."""
        total: dict[str, float] = {}
        for bundle in self._bundles:
            for what, amount in bundle.items():
                total[what] = total.get(what, 0.0) + amount
        return total

    @property
    def held(self) -> bool:
        """True while Ray holds the resources."""
        return placement_group_table(self._group).get("state") == "CREATED"

    def wait(self, timeout_s: float) -> bool:
        """Wait until Ray holds the resources. Return False on timeout."""
        return self._group.wait(timeout_s)

    def release(self) -> None:
        """Release the resources. Actors still placed here die."""
        with suppress(RayError):  # a lost cluster may be the reason of the release
            remove_placement_group(self._group)


def missing_resources(resources: Mapping[str, float]) -> str:
    """Return why a request for these Ray resources waits."""
    free = ray.available_resources()
    short = [f"{amount:g} {what}" for what, amount in resources.items() if free.get(what, 0.0) < amount]
    if short:
        return f"it needs {', '.join(short)} more than the cluster has free"
    return "no single node has enough free resources"
