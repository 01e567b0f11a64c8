"""Receives weights through shared memory, within vLLM's own weight-transfer life cycle.

The learner writes one safetensors file on a memory file system (`learner/send.py`); each worker maps it and loads it.
vLLM repacks weights for its kernels, so that parameters cannot simply be overwritten: the layer-wise reload undoes and
redoes that.

Importing this module registers the backend under the name `BACKEND`; `rollout.engine` names it as the worker
extension so that engine processes import it too.
"""

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload, layerwise

from cluster.member import show_stacks

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


class SharedMemoryReceiver(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """Loads each announced file in checkpoint format."""

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        pass

    _whole = True

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        self._whole = update_info.whole
        with safe_open(update_info.path, framework="pt", device=str(self.device)) as weights:
            self.model.load_weights((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
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
