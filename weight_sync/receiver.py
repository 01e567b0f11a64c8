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


class BroadcastReceiver:
    """The updates of an engine. One that is interrupted stays open, and goes on when the same is broadcast again."""

    def __init__(self, llm: Any) -> None:
        """llm: vLLM's engine, with `weight_sync.vllm_receiver.FileWeightTransferEngine`."""
        self._llm = llm
        self._open = False
        """Whether an update is."""
        self._key: str | None = None
        """Of the parcel that the engine has a part of."""

    @property
    def half(self) -> bool:
        """Whether the engine has a part of some weights: it must not compute."""
        return self._key is not None

    def take(self, parcel: WeightUpdate, worker: str) -> None:
        """Raises Interrupted where not all of it came, and RuntimeError where the engine has a part of another."""
        if self._key not in (None, parcel.key):
            raise RuntimeError("a part of older ones is in, and the rest does not come any more")
        if not self._open:
            self._llm.start_weight_update()
            self._open = True
        call = asdict(parcel.call) if parcel.call is not None else {}
        groups = [[[form.name, form.dtype, list(form.shape)] for form in group] for group in parcel.groups]
        update = {"groups": groups, "call": call, "worker": worker, "whole": parcel.whole, "scale": parcel.scale}
        self._key = parcel.key  # whatever happens from here on
        self._llm.update_weights({"update_info": update})
        progress = self._llm.collective_rpc("broadcast_progress")
        if not any(taken for taken, _ in progress):
            self._key = None
        if lacking := [reason for _, reason in progress if reason]:
            raise SyncInterrupted(lacking[0])
        self._llm.finish_weight_update(weight_version=str(parcel.version))
        self._open, self._key = False, None
