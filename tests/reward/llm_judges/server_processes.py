"""The processes of a vLLM server, found by the checkpoint on the server's command line."""

import time
from pathlib import Path


def command_lines() -> dict[int, list[str]]:
    """Return the command line of every process by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
    return found


def server_pids(checkpoint: str) -> list[int]:
    """Return the API servers of a checkpoint, without their guards."""
    return [
        pid
        for pid, command in command_lines().items()
        if checkpoint in command and not any(part.endswith("process_guard.py") for part in command)
    ]


def group_members(group: int) -> list[int]:
    """Return the live processes of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(folder.name))
    return found


def wait_until(holds, timeout_s: float) -> bool:
    """Return True as soon as it holds, False after the time limit."""
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
