"""Ranks of a learner in processes of their own, all at once, without Ray."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def run(module: str, root: Path, checkpoint: Path, directory: Path, ranks: int) -> list[dict]:
    """`python -m MODULE CHECKPOINT DIRECTORY PORT RANK WORLD` for every rank. Returns the last line of each, which is
    JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, checkpoint, directory, str(port), str(rank), str(ranks)],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        spoken = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, spoken, strict=True):
        assert process.returncode == 0, out[-2000:] + err[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in spoken]
