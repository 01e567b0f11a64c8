"""Fetches weights that the learner sent (`learner/send.py`): one file after the other that an engine can open."""

import os
from collections.abc import Iterator
from pathlib import Path

import ray

from cluster.parcel import Parcel, write_all
from speech.errors import InputError

PIECE_SECONDS = 120.0
"""For a piece to come from another node."""


def fetch(parcel: Parcel, worker: str) -> Iterator[Path]:
    """Safetensors files, each of which is there until the next is asked for. An engine may be another process, so a
    piece is written where that can open it: into memory that goes with this process, whatever becomes of it.

    worker: whose name an error says. Raises InputError for a file that this node does not see, RayError for a piece
    that is lost or late.
    """
    if parcel.path is not None:
        if not parcel.path.is_file():
            raise InputError(
                f"run.exchange: {worker}, on the node {os.uname().nodename}, does not see the weights {parcel.path}; "
                "where members are on several nodes, set run.exchange=objects, or run.exchange=directory and "
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
