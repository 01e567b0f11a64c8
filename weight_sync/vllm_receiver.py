"""Fetches weights that the learner sent (`weight_sync/senders.py`): one file after the other that an engine can open.

Makes the weights that an engine loads from the adapters that the learner sent: W + scale · B·A, with W as it is in
the checkpoint. No vLLM here.

The checkpoint stays on disk, or rather in the memory that the system keeps of its files: no second copy of it is held,
and one matrix is worked on at a time.

Receives weights within vLLM's own weight-transfer life cycle: from files, or broadcast by the learner.

`weight_sync/senders.py` writes safetensors files, which each worker maps and loads; `weight_sync/broadcast.py`
broadcasts groups
of tensors, each of which is loaded when it is there whole. vLLM repacks weights for its kernels, so that parameters
cannot simply be overwritten: the layer-wise reload undoes and redoes that.

Of adapters an engine is given the weights that they make (`weight_sync/vllm_receiver.py`): sampling costs what it
costs without, and every worker computes with the same weights as a checkpoint has.

Importing this module registers the backend under the name `BACKEND`; `rollout.vllm_engine` names it as the worker
extension so that engine processes import it too.
"""

import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload, layerwise

from cluster.monitored_actor import show_stacks
from common.errors import InputError
from weight_sync.broadcast import BroadcastError, BroadcastPeer
from weight_sync.update import BroadcastCall, WeightUpdate, adapted_layer, adapter_name, unit, write_all

PIECE_SECONDS = 120.0
"""For a piece to come from another node."""


def fetch_files(parcel: WeightUpdate, worker: str) -> Iterator[Path]:
    """Safetensors files, each of which is there until the next is asked for. An engine may be another process, so a
    piece is written where that can open it: into memory that goes with this process, whatever becomes of it.

    worker: whose name an error says. Raises InputError for a file that this node does not see, RayError for a piece
    that is lost or late.
    """
    if parcel.path is not None:
        if not parcel.path.is_file():
            raise InputError(
                f"weight_sync.backend: {worker}, on the node {os.uname().nodename}, does not see the weights "
                f"{parcel.path}; "
                "where members are on several nodes, set weight_sync.backend=object_store, or "
                "weight_sync.backend=filesystem and "
                "run.directory to storage that all of them see"
            )
        yield parcel.path
    for piece in parcel.pieces:
        descriptor = os.memfd_create("duet-weights")
        try:
            end = 0
            for part in ray.get(piece, timeout=PIECE_SECONDS):
                end = write_all(descriptor, part, end)
            yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        finally:
            os.close(descriptor)


def merge_lora(checkpoint: Path, adapters: Mapping[str, Tensor], scale: float) -> Iterator[tuple[str, Tensor]]:
    """Name and weight of all that shares a unit with an adapted layer, a unit after the other: an engine loads it whole
    or not at all. What is adapted comes in the type of the adapters, which is the learner's, reckoned in float32; all
    of it on their device.

    adapters: matrices A [rank, inputs] and B [outputs, rank] by name. Raises InputError for a layer that the checkpoint
    has not, or has otherwise.
    """
    layers = {f"{layer}.weight": layer for name in adapters if (layer := adapted_layer(name)) is not None}
    device = str(next(iter(adapters.values())).device)
    units = {unit(name) for name in layers}
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for path in sorted(checkpoint.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt", device=device))
            places |= {name: file for name in file.keys() if unit(name) in units}  # noqa: SIM118
        if missing := sorted(set(layers) - set(places)):
            raise InputError(
                f"learner.lora.target_modules: {checkpoint} has no {missing[0]}, of which an adapter was sent"
            )
        for name in sorted(places, key=lambda name: (unit(name), name)):
            weight = places[name].get_tensor(name)
            if name in layers:
                a, b = (adapters[adapter_name(layers[name], part)] for part in ("A", "B"))
                weight = add(weight, a, b, scale)
            yield name, weight


def add(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The same as the learner's own `AdaptedLinear.merged`, so that what it saves is what workers computed with."""
    if weight.shape != (b.shape[0], a.shape[1]):
        raise InputError(
            f"model.path: an adapter for {b.shape[0]} outputs and {a.shape[1]} inputs was sent of a layer with a "
            f"weight of {list(weight.shape)}"
        )
    start = weight.to(a.dtype).float()  # what the learner loaded of it
    return (start + scale * (b.float() @ a.float())).to(a.dtype)


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
