"""A learner rank: the Ray actor around one `LearnerEngine`. Importable without torch, for the controller."""

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
    """One process of the learner group. Every method but `address` and `close` must be called on all ranks at once."""

    def __init__(self, rank: int, world: int, settings: LearnerConfig, family: Family, objective: Objective) -> None:
        super().__init__()
        from learner.engine import LearnerEngine  # imports torch and transformers

        self._engine = LearnerEngine(rank, world, settings, family, objective)

    def address(self) -> tuple[str, int]:
        """Return this node's address and a port, bound from now on, for the group's rendezvous."""
        host = ray.util.get_node_ip_address()
        return host, self._engine.bind_port(host)

    def connect(self, host: str, port: int) -> int:
        """Join the group and load the model. Return the number of parameters."""
        return self._engine.connect(host, port)

    def step(self, items: list[Item], micro_batches: int, mix: float) -> StepReport:
        """Take one optimizer step on this rank's items."""
        return self._engine.step(items, micro_batches, mix)

    def publish(self, version: int, probe: list[np.ndarray]) -> tuple[WeightUpdate, list[np.ndarray]] | None:
        """Send the weights or prepare a broadcast. Rank 0 returns the update and the probe's log-probabilities."""
        return self._engine.publish(version, probe)

    def broadcast(self, call: BroadcastCall) -> str | None:
        """Broadcast the weights that `publish` prepared. Return the reason if the broadcast failed."""
        return self._engine.broadcast(call)

    def save(self, directory: Path) -> str:
        """Write this rank's part of a checkpoint. Return the fingerprint of the parameters."""
        return self._engine.save(directory)

    def load(self, directory: Path, fingerprint: str) -> None:
        """Restore what `save` wrote."""
        self._engine.load(directory, fingerprint)

    def close(self) -> None:
        self._engine.close()
