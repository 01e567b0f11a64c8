"""The rollout worker's side of a weight update: fetches files, or drives a broadcast into its engine.

Imports no torch: the controller imports it with the rollout pool.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from cluster.waiting import SyncInterrupted
from common.errors import InputError
from weight_sync.update import WeightUpdate, write_all

PIECE_TIMEOUT_S = 120.0
"""Deadline for a piece from another node."""


def fetch_files(update: WeightUpdate, worker: str) -> Iterator[Path]:
    """Yield the update's safetensors files. Each exists until the next is requested.

    The engine may be another process, so a piece is written to a memory file that it can open. The file vanishes with
    this process.

    Args:
        worker: Worker name for errors.

    Raises InputError for a file that this node does not see, and RayError for a piece that is lost or late.
    """
    if update.path is not None:
        if not update.path.is_file():
            raise InputError(
                f"weight_sync.backend: {worker}, on the node {os.uname().nodename}, does not see the weights "
                f"{update.path}; "
                "for actors on several nodes, set weight_sync.backend=object_store, or "
                "weight_sync.backend=filesystem and "
                "run.directory to storage that all of them see"
            )
        yield update.path
    for piece in update.pieces:
        descriptor = os.memfd_create("duet-weights")
        try:
            end = 0
            for part in ray.get(piece, timeout=PIECE_TIMEOUT_S):
                end = write_all(descriptor, part, end)
            yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        finally:
            os.close(descriptor)


class BroadcastReceiver:
    """Drives broadcasts into an engine. An interrupted update stays open, and resumes when it is broadcast again."""

    def __init__(self, llm: Any) -> None:
        """llm: vLLM engine with `weight_sync.vllm_receiver.FileWeightTransferEngine`."""
        self._llm = llm
        self._open = False
        """True while an update is open."""
        self._key: str | None = None
        """Key of the update that the engine has loaded in part."""

    @property
    def is_partial(self) -> bool:
        """True if the engine holds a partial update and must not compute."""
        return self._key is not None

    def receive(self, update: WeightUpdate, worker: str) -> None:
        """Receive an update.

        Raises SyncInterrupted if the broadcast failed, and RuntimeError if the engine holds a part of another update.
        """
        if self._key not in (None, update.key):
            raise RuntimeError("engine holds a partial older weight update; it must be restarted")
        if not self._open:
            self._llm.start_weight_update()
            self._open = True
        call = asdict(update.call) if update.call is not None else {}
        groups = [[[meta.name, meta.dtype, list(meta.shape)] for meta in group] for group in update.groups]
        update_info = {"groups": groups, "call": call, "worker": worker, "whole": update.whole, "scale": update.scale}
        self._key = update.key  # from here on the engine may hold a part
        self._llm.update_weights({"update_info": update_info})
        progress = self._llm.collective_rpc("broadcast_progress")
        if not any(num_loaded for num_loaded, _ in progress):
            self._key = None
        if reasons := [reason for _, reason in progress if reason]:
            raise SyncInterrupted(reasons[0])
        self._llm.finish_weight_update(weight_version=str(update.version))
        self._open, self._key = False, None
