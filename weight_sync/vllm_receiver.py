"""vLLM's side of a weight update: a weight-transfer engine that loads files or takes part in a broadcast.

`weight_sync/senders.py` writes safetensors files, which each worker maps and loads. `weight_sync/broadcast.py` sends
groups of tensors; each group is loaded once it is complete. vLLM repacks weights for its kernels, so parameters cannot
simply be overwritten: vLLM's layer-wise reload undoes and redoes the repacking.

Importing this module registers the backend `BACKEND`. `rollout.vllm_engine` names it as the worker extension, so that
engine processes import it too.
"""

import logging
import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload, layerwise

from cluster.monitored_actor import show_stacks
from weight_sync.broadcast import BroadcastError, BroadcastPeer
from weight_sync.lora_merge import merge_lora
from weight_sync.update import BroadcastCall

BACKEND = "duet"


@dataclass
class NoInit(WeightTransferInitInfo):
    """No initialization is needed."""


@dataclass
class EngineUpdate(WeightTransferUpdateInfo):
    """A file or a broadcast. Plain data: the engine may be another process."""

    whole: bool = True
    """True if the update includes every parameter."""
    scale: float | None = None
    """Scale of adapters (`weight_sync.update.WeightUpdate`)."""
    path: str = ""
    """A safetensors file of parameters under their checkpoint names, tied ones included."""
    groups: list[list[list[Any]]] = field(default_factory=list)
    """Name, dtype and shape of each tensor of each broadcast group, under the same names."""
    call: dict[str, Any] = field(default_factory=dict)
    """Fields of `weight_sync.update.BroadcastCall`."""
    worker: str = ""
    """Name of the engine's worker."""


class FileWeightTransferEngine(WeightTransferEngine[NoInit, EngineUpdate]):
    """Loads each file in checkpoint format, or each broadcast group once it is complete.

    A broadcast that breaks off between groups leaves the update open. The next `update_weights` resumes it, and must
    have the same groups.
    """

    init_info_cls = NoInit
    update_info_cls = EngineUpdate

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._peer = BroadcastPeer(self.device)
        self._whole = True
        self._loading = False
        self._scale: float | None = None
        self._adapters: dict[str, torch.Tensor] = {}
        """All received adapters: an engine's unit may be spread over several files or groups."""
        self.num_loaded = 0
        """Number of loaded groups of the open update."""
        self.missing_reason = ""
        """Reason why not all groups are loaded; empty if all are."""

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def start_weight_update(self) -> None:
        self.num_loaded, self._loading, self._adapters = 0, False, {}

    def receive_weights(self, update_info: EngineUpdate) -> None:
        self._whole, self._scale, self.missing_reason = update_info.whole, update_info.scale, ""
        if not update_info.path:
            self._receive_broadcast(update_info)
            return
        with safe_open(update_info.path, framework="pt", device=str(self.device)) as weights:
            self._add((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118

    def _receive_broadcast(self, update: EngineUpdate) -> None:
        """Receive a broadcast. A failure raises no error here, because vLLM would then end the update."""
        try:
            group, membership = self._peer.join(
                BroadcastCall(**update.call), f"{update.worker}/{self.parallel_config.rank}", self.num_loaded
            )
            for number, metadata in enumerate(update.groups[membership.start :], membership.start):
                tensors = {
                    name: torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
                    for name, kind, shape in metadata
                }
                group.broadcast(list(tensors.values()))
                if number == self.num_loaded:  # otherwise the group is for other receivers
                    self._add(tensors.items())
                    self.num_loaded += 1
                del tensors  # otherwise they would stay while the next is allocated
        except BroadcastError as error:
            self.missing_reason = f"{self.num_loaded} of {len(update.groups)} groups arrived: {error}"

    def _add(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        if self._scale is None:
            self._load(weights)
        else:
            self._adapters |= {name: tensor.clone() for name, tensor in weights}

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        if not self._loading:
            initialize_layerwise_reload(self.model)
            self._loading = True
        self.model.load_weights(weights)

    def finish_weight_update(self) -> None:
        if self._scale is not None:
            self._load(merge_lora(Path(self.model_config.model), self._adapters, self._scale))
            self._adapters = {}
        with nullcontext() if self._whole else _without_warnings(layerwise.logger):
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._peer.leave()


@contextmanager
def _without_warnings(logger: logging.Logger) -> Iterator[None]:
    """Silence vLLM's warning about every layer without new weights, which keeps its values."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class WorkerExtension:
    """Mixed into vLLM's worker, whose process imports this module."""

    weight_transfer_engine: Any

    def broadcast_progress(self) -> tuple[int, str]:
        """Return the number of loaded groups of the open update, and the reason why not all; empty if all are."""
        return self.weight_transfer_engine.num_loaded, self.weight_transfer_engine.missing_reason


if BACKEND not in WeightTransferEngineFactory._registry:  # no public API to check
    WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)


if multiprocessing.parent_process() is not None:  # an engine process: make its stacks visible, like the worker's
    show_stacks()
