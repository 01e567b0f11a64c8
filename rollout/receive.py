"""Receives weights within vLLM's own weight-transfer life cycle: from files, or broadcast by the learner.

`learner/send.py` writes safetensors files, which each worker maps and loads; `learner/broadcast.py` broadcasts groups
of tensors, each of which is loaded when it is there whole. vLLM repacks weights for its kernels, so that parameters
cannot simply be overwritten: the layer-wise reload undoes and redoes that.

Importing this module registers the backends under their names; `rollout.engine` names it as the worker extension so
that engine processes import it too.
"""

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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

from cluster.collective import Broken, Seat
from cluster.member import show_stacks
from cluster.parcel import Call

FILES = "duet_files"
BROADCAST = "duet_broadcast"


@dataclass
class NoInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):
    """Where the weights lie."""

    path: str
    """A safetensors file with parameters under their checkpoint names, tied ones included."""
    whole: bool = True
    """Whether the files of this update have every parameter together."""


class FilesReceiver(WeightTransferEngine[NoInit, FilesUpdate]):
    """Loads each announced file in checkpoint format."""

    init_info_cls = NoInit
    update_info_cls = FilesUpdate

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    _whole = True

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FilesUpdate) -> None:
        self._whole = update_info.whole
        with safe_open(update_info.path, framework="pt", device=str(self.device)) as weights:
            self.model.load_weights((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        _finish(self, self._whole)

    def shutdown(self) -> None:
        pass


@dataclass
class BroadcastUpdate(WeightTransferUpdateInfo):
    """What comes, and where to go for it. Plain data: an engine may be another process."""

    groups: list[list[list[Any]]]
    """Name, type and shape of each tensor of each group."""
    call: dict[str, Any]
    """Fields of `cluster.parcel.Call`."""
    worker: str
    whole: bool = True
    """As of files."""


class BroadcastReceiver(WeightTransferEngine[NoInit, BroadcastUpdate]):
    """Loads each group of tensors when it is there whole. An update that breaks off between groups stays open, with
    what was loaded, and goes on with the next `update_weights`, whose groups must be the same."""

    init_info_cls = NoInit
    update_info_cls = BroadcastUpdate

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seat = Seat(self.device)
        self._whole = True
        self.taken = 0
        """Groups that are loaded, of the update that is open."""
        self.lacking = ""
        """Why not all of them are; empty: all are."""

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def start_weight_update(self) -> None:
        self.taken = 0

    def receive_weights(self, update_info: BroadcastUpdate) -> None:
        """Takes what comes; whether that was all is in `lacking`, as an error would end the update for vLLM."""
        self._whole, self.lacking = update_info.whole, ""
        call = Call(**update_info.call)
        seat = f"{update_info.worker}/{self.parallel_config.rank}"
        try:
            group, roll = self._seat.join(call, seat, self.taken)
            for number, forms in enumerate(update_info.groups[roll.start :], roll.start):
                tensors = {
                    name: torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
                    for name, kind, shape in forms
                }
                group.broadcast(list(tensors.values()))
                if number == self.taken:  # else it was for others
                    if number == 0:
                        initialize_layerwise_reload(self.model)
                    self.model.load_weights(tensors.items())
                    self.taken += 1
                del tensors  # or they would stay while room for the next is made
        except Broken as error:
            self.lacking = f"{self.taken} of {len(update_info.groups)} groups came: {error}"

    def finish_weight_update(self) -> None:
        _finish(self, self._whole)

    def shutdown(self) -> None:
        self._seat.leave()


def _finish(receiver: WeightTransferEngine, whole: bool) -> None:
    with nullcontext() if whole else _without_warnings(layerwise.logger):
        finalize_layerwise_reload(receiver.model, receiver.model_config)


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


for name, receiver in ((FILES, FilesReceiver), (BROADCAST, BroadcastReceiver)):
    if name not in WeightTransferEngineFactory._registry:  # there is no public way to ask
        WeightTransferEngineFactory.register_engine(name, receiver)
if multiprocessing.parent_process() is not None:  # an engine process: what it does must be seen like its member
    show_stacks()
