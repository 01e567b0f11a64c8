"""Room in the cluster that is held for actors, and what is lacking while there is none."""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


class Placement:
    """Room for actors, one in each bundle, as one of Ray's placement groups: all bundles are held, or none.

    It is asked for at once, and whoever is put in it starts when it is there. It ends with `give_up`, or with the actor
    that asked for it if that is a detached one; Ray keeps those of other actors for as long as their job lives.
    """

    def __init__(self, name: str, *bundles: Mapping[str, float], strategy: str = "PACK") -> None:
        """name: what `ray list placement-groups` shows it under. bundles: amounts of Ray's resources. strategy: Ray's,
        of how they lie on the nodes."""
        self._bundles = [{what: amount for what, amount in bundle.items() if amount} for bundle in bundles]
        # Ray refuses a name that is taken, and one that has just been given up is for a while.
        self._group = placement_group(self._bundles, strategy=strategy, name=f"duet-{name}-{uuid.uuid4().hex[:8]}")

    def options(self, bundle: int = 0) -> dict[str, Any]:
        """Of the actor that takes this bundle, whole."""
        others = dict(self._bundles[bundle])
        return {
            "num_cpus": others.pop("CPU", 0),
            "num_gpus": others.pop("GPU", 0),
            "resources": others,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        }

    @property
    def needs(self) -> dict[str, float]:
        """Of all bundles together."""
        total: dict[str, float] = {}
        for bundle in self._bundles:
            for what, amount in bundle.items():
                total[what] = total.get(what, 0.0) + amount
        return total

    @property
    def held(self) -> bool:
        """Whether it is there now."""
        return placement_group_table(self._group).get("state") == "CREATED"

    def wait(self, seconds: float) -> bool:
        """Waits until it is there. Whether it is."""
        return self._group.wait(seconds)

    def give_up(self) -> None:
        """Ends it; an actor that is still in it dies."""
        with suppress(RayError):  # which may be why it is given up
            remove_placement_group(self._group)


def missing_resources(needs: Mapping[str, float]) -> str:
    """Why room for these needs, of Ray's resources, is waited for."""
    free = ray.available_resources()
    short = [f"{amount:g} {what}" for what, amount in needs.items() if free.get(what, 0.0) < amount]
    return f"it needs {', '.join(short)} more than the cluster has free" if short else "no node has room for it"
