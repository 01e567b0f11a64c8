"""Setup of a rank: learning-rate schedule, gradient checkpointing, DeepSpeed's compiled operator, rendezvous store."""

import fcntl
import math
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from common.errors import InputError


def learning_rate_factor(step: int, *, warmup: int, steps: int, final: float) -> float:
    """Return the factor of the peak learning rate at a step, counted from 0.

    Linear warm-up over `warmup` steps, then a cosine down to `final` at `steps`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def enable_gradient_checkpointing(model: nn.Module) -> int:
    """Enable gradient checkpointing in a transformers model. Return the number of layers.

    Each layer keeps only its input and recomputes the rest in the backward pass. transformers recomputes only layers in
    training mode, which would also enable dropout. So only the layers' own flag is set, not that of their submodules,
    and dropout that a layer applies itself is set to 0.

    Raises InputError if the model has no layer that supports it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"learner.gradient_checkpointing: {type(model).__name__} has no layers that support it; set it to false"
        )
    switch: Any = model.gradient_checkpointing_enable
    switch({"use_reentrant": False})
    for layer in layers:
        layer.training = True
        for name, value in list(vars(layer).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(layer, name, 0.0)
    return len(layers)


def compile_deepspeed_op() -> None:
    """Compile and load DeepSpeed's CPU operator once per machine. Concurrent callers wait for the first.

    torch marks a running build by a lock file. A killed process leaves it behind, and every later build would wait
    forever. The operating system releases our `flock` when a process dies, so its holder may remove the file.
    """
    # torch uses the first `ninja` on PATH, and rebuilds if it differs from the last one. The environment's own always
    # exists, however the job was started.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory  # no public API returns the build directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return  # DeepSpeed works without it, as on CPUs other than x86
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder.parent / f"{builder.name}.held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)


def bind_port(host: str) -> socket.socket:
    """Bind a free port of this address only. torch by itself would listen on all addresses."""
    return socket.create_server((host, 0))


def create_store(rank: int, world: int, host: str, port: int, held: socket.socket | None) -> torch.distributed.TCPStore:
    """Join the rendezvous store, which rank 0 serves.

    Args:
        held: Rank 0's listening socket, which the store takes over. None: bind the port now.
    """
    if rank != 0:
        return torch.distributed.TCPStore(host, port, world, is_master=False)
    descriptor = (held or socket.create_server((host, port))).detach()
    return torch.distributed.TCPStore(
        host, port, world, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )
