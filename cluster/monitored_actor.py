"""What each of our actors does besides its work: it can be looked into, and leaves word of how it ended.

Both must work while the actor's method runs, hangs in a C call or holds the interpreter's lock, so neither asks the
actor. Ray's concurrency groups would not do: an actor that has one runs its other methods outside the main thread too,
where torch, DeepSpeed and vLLM keep state by thread. Instead a signal makes the interpreter write all stacks to a file,
and whoever wants them sends it from a process on the same node (`on_node`).
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

Answer = TypeVar("Answer")

STACKS = signal.SIGUSR2
"""Has a member, or a process that it started, write down its stacks."""
PLACE = "DUET_MEMBER"
"""Environment variable: where files of a member begin, a path up to its actor id. Its child processes inherit it."""
NODE_SECONDS = 8.0
"""For a small task on another node: a worker process may have to start for it."""
QUIET_SECONDS = 0.2
"""A stack file that has not grown for so long is whole."""


@dataclass(frozen=True, kw_only=True)
class ActorIdentity:
    """A member as Ray knows it, dead or alive. It need not answer for this."""

    actor_id: str
    pid: int
    """0 until the actor has a process."""
    node_id: str
    """Hexadecimal; empty until the actor has a node."""
    host: str
    kind: str
    """Its class."""
    death: str = ""
    """Ray's account of its end; empty while it lives."""


class MonitoredActor:
    """Base of our actors. Subclasses call `super().__init__()` first, so that a slow start can be looked into too.

    Outside an actor it does nothing.
    """

    def __init__(self) -> None:
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        if actor is None:
            return
        os.environ[PLACE] = str(logs_directory() / f"member-{actor}")
        show_stacks()
        heartbeat.beat(actor)
        # In a session of its own: when a worker dies, the raylet kills the rest of its process group.
        subprocess.Popen(
            [sys.executable, "-I", "-S", exit_watcher.__file__, str(os.getpid()), f"{os.environ[PLACE]}.exit"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def show_stacks() -> None:
    """From now on the signal `STACKS` has this process, a member or its child, write down its stacks."""
    if PLACE in os.environ:
        file = Path(f"{os.environ[PLACE]}-{os.getpid()}.stacks").open("w")  # noqa: SIM115 - it stays open for good
        faulthandler.register(STACKS, file=file, all_threads=True)


def logs_directory() -> Path:
    """Where Ray writes the logs of this node."""
    node: Any = ray._private.worker._global_node  # there is no public way to ask
    return Path(node.get_logs_dir_path())


def find_identity(actor: Any) -> ActorIdentity | None:
    """Whom Ray knows under an actor's handle or hexadecimal id, or None. Asks Ray's table, not the actor."""
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
        node_id=node_id if set(node_id) - {"f"} else "",  # all ones: none yet
        host=address["IPAddress"],
        kind=row["ActorClassName"],
        death=_account(row["DeathCause"]) if row["State"] == "DEAD" else "",
    )


def _account(cause: Any) -> str:
    """The text in Ray's DeathCause (protobuf/common.proto), whichever kind it is of."""
    kind = cause.WhichOneof("context")
    context = getattr(cause, kind) if kind else None
    return getattr(context, "error_message", "") or f"dead, {kind or 'no cause given'}"


def on_node(node_id: str, function: Callable[..., Answer], *arguments: Any, seconds: float = NODE_SECONDS) -> Answer:
    """The function's answer from a process on that node: this one, if it is here, or a small Ray task.

    Raises TimeoutError after `seconds`, and RayError when the node is not there.
    """
    if node_id == ray.get_runtime_context().get_node_id():
        return function(*arguments)
    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
    answer = task.remote(*arguments)
    try:
        return ray.get(answer, timeout=seconds)
    except GetTimeoutError:
        ray.cancel(answer, force=True)
        raise TimeoutError(f"node {node_id[:8]} did not answer within {seconds:.0f} s") from None


def stacks_of(actor: Any, seconds: float = 3.0) -> str:
    """Stacks of all Python threads of a member and of the processes it started, as text; what is known of a process
    that does not give them. Never raises, and takes no longer than `seconds` and the time to reach the node."""
    try:
        found = find_identity(actor)
        if found is None or not found.pid:
            return "has no process yet"
        return on_node(found.node_id, stacks_here, found.actor_id, found.pid, seconds)
    except (RayError, TimeoutError, OSError) as error:
        return f"not reached: {' '.join(str(error).split())}"


def stacks_here(actor_id: str, pid: int, seconds: float) -> str:
    """As `stacks_of`, of a member on this node."""
    files = {int(p.stem.rpartition("-")[2]): p for p in logs_directory().glob(f"member-{actor_id}-*.stacks")}
    asked = {child: path.stat().st_size for child, path in files.items() if _listens(child)}
    for child in asked:
        os.kill(child, STACKS)
    sizes, changed = dict(asked), time.monotonic()
    deadline = changed + seconds
    while asked and time.monotonic() < deadline:
        time.sleep(QUIET_SECONDS / 4)
        now = {child: files[child].stat().st_size for child in asked}
        if now != sizes:
            sizes, changed = now, time.monotonic()
        elif all(now[child] > asked[child] for child in asked) and time.monotonic() - changed > QUIET_SECONDS:
            break
    parts = []
    for child in sorted({pid, *asked}, key=lambda p: (p != pid, p)):
        text = ""
        if child in asked:
            text = files[child].read_bytes()[asked[child] :].decode(errors="replace").strip()
        role = "" if child == pid else ", started by it"
        parts.append(f"process {child}{role}: {_condition(child)}\n{text or 'gave no stacks'}")
    return "\n\n".join(parts)


def _listens(pid: int) -> bool:
    """Whether a process has a handler for the signal; it would kill one that has not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (STACKS - 1) & 1)


def _condition(pid: int) -> str:
    """What the kernel says that a process is doing: its state, and where in the kernel each waiting thread is."""
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
