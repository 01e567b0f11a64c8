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
    """Nothing to agree on beforehand."""


@dataclass
class EngineUpdate(WeightTransferUpdateInfo):
    """A file, or a broadcast. Plain data: an engine may be another process."""

    whole: bool = True
    """Whether what comes in this update has every parameter together."""
    scale: float | None = None
    """Of adapters, where those come (`weight_sync.update.WeightUpdate`)."""
    path: str = ""
    """A safetensors file with parameters under their checkpoint names, tied ones included."""
    groups: list[list[list[Any]]] = field(default_factory=list)
    """Name, type and shape of each tensor of each group that is broadcast, under the same names."""
    call: dict[str, Any] = field(default_factory=dict)
    """Fields of `weight_sync.update.BroadcastCall`."""
    worker: str = ""
    """Whose engine takes part."""


class FileWeightTransferEngine(WeightTransferEngine[NoInit, EngineUpdate]):
    """Loads each announced file in checkpoint format, or each group of a broadcast when it is there whole.

    A broadcast that breaks off between groups leaves the update open, with what was loaded; it goes on with the next
    `update_weights`, whose groups must be the same.
    """

    init_info_cls = NoInit
    update_info_cls = EngineUpdate

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seat = BroadcastPeer(self.device)
        self._whole = True
        self._loading = False
        self._scale: float | None = None
        self._adapters: dict[str, torch.Tensor] = {}
        """All that came: a unit of an engine may be spread over files and groups, which are gone when they are read."""
        self.taken = 0
        """Groups that are loaded, of the update that is open."""
        self.lacking = ""
        """Why not all of them are; empty: all are."""

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def start_weight_update(self) -> None:
        self.taken, self._loading, self._adapters = 0, False, {}

    def receive_weights(self, update_info: EngineUpdate) -> None:
        self._whole, self._scale, self.lacking = update_info.whole, update_info.scale, ""
        if not update_info.path:
            self._listen(update_info)
            return
        with safe_open(update_info.path, framework="pt", device=str(self.device)) as weights:
            self._take((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118

    def _listen(self, update: EngineUpdate) -> None:
        """Takes what is broadcast. That it broke off is no error here, which would end the update for vLLM."""
        try:
            group, roll = self._seat.join(
                BroadcastCall(**update.call), f"{update.worker}/{self.parallel_config.rank}", self.taken
            )
            for number, forms in enumerate(update.groups[roll.start :], roll.start):
                tensors = {
                    name: torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
                    for name, kind, shape in forms
                }
                group.broadcast(list(tensors.values()))
                if number == self.taken:  # else it was for others
                    self._take(tensors.items())
                    self.taken += 1
                del tensors  # or they would stay while room for the next is made
        except BroadcastError as error:
            self.lacking = f"{self.taken} of {len(update.groups)} groups came: {error}"

    def _take(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
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
        self._seat.leave()


@contextmanager
def _without_warnings(logger: logging.Logger) -> Iterator[None]:
    """vLLM keeps what a layer has when nothing comes for it, and warns, at every update and of every such layer."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class WorkerExtension:
    """Mixed into vLLM's worker, whose process imports this module for it."""

    weight_transfer_engine: Any

    def broadcast_progress(self) -> tuple[int, str]:
        """How many groups of the update that is open are loaded, and why not all; empty: all are."""
        return self.weight_transfer_engine.taken, self.weight_transfer_engine.lacking


if BACKEND not in WeightTransferEngineFactory._registry:  # there is no public way to ask
    WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)


if multiprocessing.parent_process() is not None:  # an engine process: what it does must be seen like its member
    show_stacks()
