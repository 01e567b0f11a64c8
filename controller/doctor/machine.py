"""What there is to run on: this machine, and a Ray cluster where one is named. A thin shell."""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.parcel import memory_directory
from controller.config import Config
from speech.errors import InputError

UNLIMITED = 1 << 60
"""A control group without a limit says a number of this order, or "max"."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
CONNECT_SECONDS = 5.0
PORT = 6379
"""Of a Ray cluster whose address does not say one."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    total: float
    """Bytes."""
    free: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine, as far as this process may use it."""

    cpus: int
    memory: float
    """Bytes, or what the container may use."""
    memory_free: float
    shared: Path
    """Where weights are handed on."""
    shared_free: float
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a Ray cluster, by what Ray may hand out there."""

    host: str
    resources: dict[str, float]
    """CPU, GPU, and what else the node was started with."""
    memory: float
    """Bytes that Ray counts for actors."""


def here() -> Machine:
    """This machine."""
    shared = memory_directory()
    total, free = memory(Path("/proc/meminfo").read_text(), [_number(p) for p in LIMITS], [_number(p) for p in USED])
    return Machine(
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=total,
        memory_free=free,
        shared=shared,
        shared_free=shutil.disk_usage(shared).free,
        gpus=_gpus(),
    )


def memory(meminfo: str, limits: list[float | None], used: list[float | None]) -> tuple[float, float]:
    """Bytes in all and bytes free: of the machine, or of the control group where that is less.

    meminfo: the text of /proc/meminfo. limits, used: of the control groups, None for one that is not there.
    """
    values = {line.partition(":")[0]: line.partition(":")[2].split() for line in meminfo.splitlines()}
    total, free = (1024.0 * float(values[name][0]) for name in ("MemTotal", "MemAvailable"))
    for limit, taken in zip(limits, used, strict=True):
        if limit is not None and limit < min(total, UNLIMITED):
            total, free = limit, min(free, limit - (taken or 0.0))
    return total, free


def _number(path: str) -> float | None:
    try:
        return float(Path(path).read_text())
    except (OSError, ValueError):  # no such control group; "max"
        return None


def _gpus() -> tuple[Gpu, ...]:
    """By the driver's own tool: torch would take memory on each of them to say the same."""
    if shutil.which(QUERY[0]) is None:
        return ()
    try:
        said = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return gpus(said)


def gpus(said: str) -> tuple[Gpu, ...]:
    """The GPUs in a table of nvidia-smi: name, MiB in all, MiB free."""
    found = []
    for line in said.splitlines():
        name, *amounts = (part.strip() for part in line.rsplit(",", 2))
        if len(amounts) == 2 and all(amount.isdecimal() for amount in amounts):
            total, free = (float(amount) * 2**20 for amount in amounts)
            found.append(Gpu(name=name, total=total, free=free))
    return tuple(found)


def address(config: Config) -> str:
    """Of the Ray cluster that `duet train` would join; empty where it starts one of its own."""
    found = config.cluster.address or os.environ.get("RAY_ADDRESS", "")
    return "" if found == "local" else found


def nodes(address: str) -> list[Node]:
    """The living nodes of a cluster. Raises InputError when it cannot be joined."""
    _knock(address)
    import ray

    from controller.train import join

    join(address)
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
    return [
        Node(
            host=node["NodeManagerAddress"],
            resources=dict(node["Resources"]),
            memory=node["Resources"].get("memory", 0.0),
        )
        for node in alive
    ]


def _knock(address: str) -> None:
    """Whether anybody is at the address: Ray itself would wait for minutes."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        socket.create_connection((parts.hostname or "", parts.port or PORT), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"cluster.address: nobody answers at {address}: {error}") from error
