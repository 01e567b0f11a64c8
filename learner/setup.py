"""The operator that DeepSpeed compiles on a machine when the first learner starts there, and never again.

Where the ranks of a learner group find each other: torch's store, served by rank 0 on one address of its node.

Gradient checkpointing: of each layer only the input is kept, and the rest is computed again in the backward pass.

The learning rate over a run. Pure.
"""

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


def share(step: int, *, warmup: int, steps: int, final: float) -> float:
    """Share of the highest learning rate at a step, the first being 0: linear warm-up over `warmup` steps, then a
    cosine down to `final` at `steps`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def enable_gradient_checkpointing(model: nn.Module) -> int:
    """Switches it on in a transformers model; returns in how many layers. Raises InputError where there is none.

    transformers recomputes only what is in training mode, which would switch dropout on as well. So the layers
    themselves are told that they train, and nothing within them is; dropout that a layer does itself is set to 0.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"learner.gradient_checkpointing: {type(model).__name__} has no layers that can be recomputed")
    switch: Any = model.gradient_checkpointing_enable
    switch({"use_reentrant": False})
    for layer in layers:
        layer.training = True
        for name, value in list(vars(layer).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(layer, name, 0.0)
    return len(layers)


def compile_deepspeed_op() -> None:
    """Has DeepSpeed compile and load its operator for processors; who comes second waits for who came first.

    torch marks a build that is under way by a file. A killed process leaves it behind, and everybody after it would
    wait for ever. Our own lock the system takes from the dead: whoever has it knows that the file is nobody's.
    """
    # With the first `ninja` on the path, and anew when that is another one than the last time: it must be the
    # environment's own, which is always there, however the job was started.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory  # no public name tells where it builds

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return  # DeepSpeed does without it, as on processors other than x86
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder.parent / f"{builder.name}.held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)


def door(host: str) -> socket.socket:
    """A free port of this address, held from now on: torch, left to itself, would listen on every address."""
    return socket.create_server((host, 0))


def store(rank: int, world: int, host: str, port: int, held: socket.socket | None) -> torch.distributed.TCPStore:
    """Joins the store at an address. held: rank 0's door, which is the store's from here on; None opens one now."""
    if rank != 0:
        return torch.distributed.TCPStore(host, port, world, is_master=False)
    descriptor = (held or socket.create_server((host, port))).detach()
    return torch.distributed.TCPStore(
        host, port, world, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )
