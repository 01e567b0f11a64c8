"""A learner rank: the Ray actor around one `learner.engine`. Importable without torch, as the controller has to."""

from pathlib import Path

import numpy as np
import ray

from cluster.monitored_actor import MonitoredActor
from learner.config import LearnerConfig, Objective
from learner.micro_batches import Item
from learner.step_metrics import StepReport
from speech.families import Family
from weight_sync.update import BroadcastCall, WeightUpdate


class LearnerRank(MonitoredActor):
    """One process of the learner group. `connect` must be called on all ranks at once."""

    def __init__(self, rank: int, world: int, settings: LearnerConfig, family: Family, objective: Objective) -> None:
        super().__init__()
        from learner.engine import LearnerEngine  # and with it torch and transformers

        self._engine = LearnerEngine(rank, world, settings, family, objective)

    def address(self) -> tuple[str, int]:
        """Where the group will meet: this node's address and a port, which is held from now on."""
        host = ray.util.get_node_ip_address()
        return host, self._engine.open_door(host)

    def connect(self, host: str, port: int) -> int:
        """Joins the group and loads the model. Returns the number of parameters."""
        return self._engine.connect(host, port)

    def step(self, items: list[Item], micro_batches: int, mix: float) -> StepReport:
        """One optimiser step on this rank's items."""
        return self._engine.step(items, micro_batches, mix)

    def publish(self, version: int, probe: list[np.ndarray]) -> tuple[WeightUpdate, list[np.ndarray]] | None:
        """Sends or announces the weights; of rank 0, the parcel and the probe's log-probabilities."""
        return self._engine.publish(version, probe)

    def deliver(self, call: BroadcastCall) -> str | None:
        """Broadcasts the weights as they were announced. Returns why that broke off."""
        return self._engine.deliver(call)

    def save(self, directory: Path) -> str:
        """Writes its part of a checkpoint; returns the fingerprint of the parameters."""
        return self._engine.save(directory)

    def load(self, directory: Path, fingerprint: str) -> None:
        """Goes on from what `save` wrote."""
        self._engine.load(directory, fingerprint)

    def close(self) -> None:
        self._engine.close()
