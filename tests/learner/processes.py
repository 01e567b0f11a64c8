"""Runs learner ranks in separate processes, without Ray.

The processes are forked from one that has already imported the learner, which takes seconds. Each test needs its own
ranks, because a process can hold only one DeepSpeed engine.
"""

import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["learner.engine"])
SECONDS = 400


def started(act: Callable[..., Any], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start a process that runs `act(*arguments)`."""
    near, far = CONTEXT.Pipe()
    process = CONTEXT.Process(target=act, args=(*arguments, far), daemon=True)
    process.start()
    far.close()
    return process, near


def run(act: Callable[..., dict], *arguments: Any, ranks: int) -> list[dict]:
    """Run `act(*arguments, PORT, RANK, RANKS)` in one process per rank. Return the results by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = [started(_answer, act, (*arguments, port, rank, ranks)) for rank in range(ranks)]
    try:
        deadline, found = time.monotonic() + SECONDS, {}
        places = {near: rank for rank, (_, near) in enumerate(made)}
        while pending := [near for near in places if places[near] not in found]:
            ready = wait(pending, deadline - time.monotonic())
            assert ready, f"ranks {[places[near] for near in pending]} gave no answer within {SECONDS} s"
            found |= {places[near]: _answer_of(near, places[near]) for near in ready}
    finally:
        for process, near in made:
            process.kill()
            process.join()
            near.close()
    return [found[rank] for rank in range(ranks)]


def _answer_of(near: Connection, rank: int) -> dict:
    try:
        answer, error = near.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None
    assert not error, f"rank {rank}: {error}"
    return answer


def _answer(act: Callable[..., dict], arguments: tuple, far: Connection) -> None:
    torch.set_num_threads(1)
    try:
        far.send((act(*arguments), ""))
    except BaseException:
        far.send(({}, traceback.format_exc()))
