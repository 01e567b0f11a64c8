"""Receives weights through shared memory, within vLLM's own weight-transfer life cycle.

The learner writes one safetensors file on a memory file system (`learner/send.py`); each worker maps it and loads it.
vLLM repacks weights for its kernels, so that parameters cannot simply be overwritten: the layer-wise reload undoes and
redoes that. Of adapters it is given the weights that they make (`rollout/merging.py`): sampling costs what it costs
without, and every worker computes with the same weights as a checkpoint has.

Importing this module registers the backend under the name `BACKEND`; `rollout.engine` names it as the worker
extension so that engine processes import it too.
"""

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload, layerwise

from cluster.member import show_stacks
from rollout.merging import merged

BACKEND = "shared_memory"


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """Where the weights lie."""

    path: str
    """A safetensors file with parameters under their checkpoint names, tied ones included."""
    whole: bool = True
    """Whether the files of this update have every parameter together."""
    scale: float | None = None
    """Of adapters, where those are in it (`cluster.parcel.Parcel`)."""


class SharedMemoryReceiver(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """Loads each announced file in checkpoint format, or all adapters together at the end."""

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        pass

    _whole = True
    _scale: float | None = None

    def start_weight_update(self) -> None:
        self._adapters: dict[str, Tensor] = {}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        model: Any = self.model
        self._whole, self._scale = update_info.whole, update_info.scale
        with safe_open(update_info.path, framework="pt", device=str(self.device)) as weights:
            found = ((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118
            if self._scale is None:
                model.load_weights(found)
            else:  # a unit may be spread over files, which are gone when this returns
                self._adapters |= {name: tensor.clone() for name, tensor in found}

    def finish_weight_update(self) -> None:
        if self._scale is not None:
            model: Any = self.model
            model.load_weights(merged(Path(self.model_config.model), self._adapters, self._scale))
            self._adapters = {}
        with nullcontext() if self._whole else _without_warnings(layerwise.logger):
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


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
    """Mixed into vLLM's worker only so that its process imports this module."""


if BACKEND not in WeightTransferEngineFactory._registry:  # there is no public way to ask
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryReceiver)
if multiprocessing.parent_process() is not None:  # an engine process: what it does must be seen like its member
    show_stacks()
