"""Base of all actors: heartbeats, stack dumps, and a record of how the process exited.

Stack dumps must work while a method runs, hangs in a C call or holds the interpreter's lock, so they do not call the
actor. Ray's concurrency groups do not help: an actor that has one runs its other methods outside the main thread,
where torch, DeepSpeed and vLLM keep state by thread. Instead a signal makes the interpreter write all stacks to a
file. It is sent from a process on the same node (`on_node`).
"""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import exit_watcher, heartbeat

Result = TypeVar("Result")

STACK_SIGNAL = signal.SIGUSR2
"""Signal that makes an actor, or a process started by it, dump its stacks."""
FILES_VARIABLE = "DUET_MEMBER"
"""Environment variable with the path prefix of the actor's files, up to its id. Child processes inherit it."""
NODE_TIMEOUT_S = 8.0
"""Timeout of a small task on another node, which may have to start a worker process."""
QUIET_S = 0.2
"""Time without growth after which a stack file is complete."""


@dataclass(frozen=True, kw_only=True)
class ActorIdentity:
    """Entry of an actor, dead or alive, in Ray's actor table."""

    actor_id: str
    pid: int
    """0 while the actor has no process."""
    node_id: str
    """Hexadecimal; empty while the actor has no node."""
    host: str
    kind: str
    """Name of the actor's class."""
    death: str = ""
    """Ray's message about the death; empty while the actor lives."""


class MonitoredActor:
    """Base class of actors. Subclasses call `super().__init__()` first, so that a slow start can be inspected too.

    Has no effect outside an actor.
    """

    def __init__(self) -> None:
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        if actor is None:
            return
        os.environ[FILES_VARIABLE] = str(logs_directory() / f"member-{actor}")
        show_stacks()
        heartbeat.start_heartbeat(actor)
        # In its own session: when a worker dies, the raylet kills the rest of its process group.
        subprocess.Popen(
            [sys.executable, "-I", "-S", exit_watcher.__file__, str(os.getpid()), f"{os.environ[FILES_VARIABLE]}.exit"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def show_stacks() -> None:
    """Make `STACK_SIGNAL` dump the stacks of this process, an actor or its child."""
    if FILES_VARIABLE in os.environ:
        file = Path(f"{os.environ[FILES_VARIABLE]}-{os.getpid()}.stacks").open("w")  # noqa: SIM115 - stays open
        faulthandler.register(STACK_SIGNAL, file=file, all_threads=True)


def logs_directory() -> Path:
    """Return the directory of Ray's logs on this node."""
    node: Any = ray._private.worker._global_node  # Ray has no public interface for it
    return Path(node.get_logs_dir_path())


def find_identity(actor: Any) -> ActorIdentity | None:
    """Look up an actor by handle or hexadecimal id in Ray's actor table. Return None if it is not there."""
    from ray._private.state import actors  # the public interface to this table needs Ray's dashboard

    actor_id = actor if isinstance(actor, str) else actor._actor_id.hex()
    row = actors(actor_id)
    if not row:
        return None
    address = row["Address"]
    node_id = address["NodeID"]
    return ActorIdentity(
        actor_id=actor_id,
        pid=row["Pid"],
        node_id=node_id if set(node_id) - {"f"} else "",  # all ones: no node yet
        host=address["IPAddress"],
        kind=row["ActorClassName"],
        death=_death_message(row["DeathCause"]) if row["State"] == "DEAD" else "",
    )


def _death_message(cause: Any) -> str:
    """Return the message in Ray's DeathCause (protobuf/common.proto), of any kind."""
    kind = cause.WhichOneof("context")
    context = getattr(cause, kind) if kind else None
    return getattr(context, "error_message", "") or f"dead, {kind or 'no cause given'}"


def on_node(
    node_id: str, function: Callable[..., Result], *arguments: Any, timeout_s: float = NODE_TIMEOUT_S
) -> Result:
    """Call a function on a node: in this process if it runs there, otherwise in a small Ray task.

    Raises:
        TimeoutError: After `timeout_s`.
        RayError: The node is gone.
    """
    if node_id == ray.get_runtime_context().get_node_id():
        return function(*arguments)
    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
    answer = task.remote(*arguments)
    try:
        return ray.get(answer, timeout=timeout_s)
    except GetTimeoutError:
        ray.cancel(answer, force=True)
        raise TimeoutError(f"node {node_id[:8]} did not answer within {timeout_s:.0f} s") from None


def stacks_of(actor: Any, timeout_s: float = 3.0) -> str:
    """Return the stacks of all Python threads of an actor and its child processes as text. A process that dumps none is
    listed with its kernel state. Never raises; takes at most `timeout_s` plus the time to reach the node."""
    try:
        found = find_identity(actor)
        if found is None or not found.pid:
            return "has no process yet"
        return on_node(found.node_id, stacks_here, found.actor_id, found.pid, timeout_s)
    except (RayError, TimeoutError, OSError) as error:
        return f"not reached: {' '.join(str(error).split())}"


def stacks_here(actor_id: str, pid: int, timeout_s: float) -> str:
    """Return `stacks_of` for an actor on this node."""
    files = {int(p.stem.rpartition("-")[2]): p for p in logs_directory().glob(f"member-{actor_id}-*.stacks")}
    signalled = {child: path.stat().st_size for child, path in files.items() if _handles_signal(child)}
    for child in signalled:
        os.kill(child, STACK_SIGNAL)
    sizes, changed = dict(signalled), time.monotonic()
    deadline = changed + timeout_s
    while signalled and time.monotonic() < deadline:
        time.sleep(QUIET_S / 4)
        now = {child: files[child].stat().st_size for child in signalled}
        if now != sizes:
            sizes, changed = now, time.monotonic()
        elif all(now[child] > signalled[child] for child in signalled) and time.monotonic() - changed > QUIET_S:
            break
    parts = []
    for child in sorted({pid, *signalled}, key=lambda p: (p != pid, p)):
        text = ""
        if child in signalled:
            text = files[child].read_bytes()[signalled[child] :].decode(errors="replace").strip()
        role = "" if child == pid else ", child"
        parts.append(f"process {child}{role}: {_kernel_state(child)}\n{text or 'no stacks received'}")
    return "\n\n".join(parts)


def _handles_signal(pid: int) -> bool:
    """Return True if a process handles `STACK_SIGNAL`, which kills a process without a handler."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (STACK_SIGNAL - 1) & 1)


def _kernel_state(pid: int) -> str:
    """Return the state of a process, and the kernel function in which each of its threads waits."""
    try:
        state = Path(f"/proc/{pid}/status").read_text().partition("State:")[2].splitlines()[0].strip()
        waiting: dict[str, int] = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            place = (task / "wchan").read_text().strip().strip("0") or "running"
            waiting[place] = waiting.get(place, 0) + 1
    except (OSError, IndexError):
        return "gone"
    threads = ", ".join(f"{count} in {place}" for place, count in sorted(waiting.items(), key=lambda w: -w[1]))
    return f"{state}; threads: {threads}"
