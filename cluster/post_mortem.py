"""Diagnoses the death of an actor: the certain cause, and its last log lines.

Sources, in order of precedence: Ray, if it ended the process or saw it exit (ray.kill, an exit code, its memory
monitor, a lost node, an error in __init__); the exit watcher, which reads the exit status from the kernel; the fatal
signal that Python wrote to the actor's log. Otherwise the cause is reported as unknown. Ray's guesses and advice are
left out.
"""

import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError

from cluster.monitored_actor import ActorIdentity, find_identity, logs_directory, on_node

MAX_LINES = 20
"""Last log lines kept per stream."""
MAX_TAIL_BYTES = 64 * 1024
WATCHER_TIMEOUT_S = 1.0
"""Timeout of the exit watcher's record: Ray may report a death before the process exits."""
FATAL = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
"""Line that Python's faulthandler, enabled by Ray, writes before a signal ends the process."""
NOISE = re.compile(r"^:(job_id|actor_name|task_name):")
"""Markers that Ray writes into logs for its own use."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
UNKNOWN = "connection error code"
"""In Ray's message: the process is gone, and Ray knows nothing else."""


@dataclass(frozen=True, kw_only=True)
class ExitEvidence:
    """Evidence from the actor's node."""

    status: int | None = None
    """Exit status as from waitpid."""
    oom_kills: int | None = None
    """Kills of the kernel's out-of-memory killer in the actor's cgroup in its last seconds."""
    log_tail: tuple[str, ...] = ()
    missing: str = ""
    """Reason why the evidence is missing."""


@dataclass(frozen=True, kw_only=True)
class PostMortem:
    cause: str
    """"killed by signal 9 (SIGKILL)"."""
    details: tuple[str, ...] = ()
    """Further facts, one sentence each."""
    log_tail: tuple[str, ...] = ()
    """The actor's last log lines, oldest first."""

    def __str__(self) -> str:
        return "; ".join((self.cause, *self.details))

    def text(self) -> str:
        """Return cause, details and log lines as several lines."""
        return "\n".join((str(self), *(f"    {line}" for line in self.log_tail)))


def describe(
    error: Exception | None, actor: Any = None, redact: Callable[[str], str] = lambda text: text
) -> PostMortem:
    """Diagnose a dead actor. Never raises. Takes up to about ten seconds if the node does not answer, otherwise well
    below two.

    Args:
        error: Ray's error (RayActorError, OutOfMemoryError). None: only the death is known.
        actor: Handle, hexadecimal id or ActorIdentity. None: the actor that the error names.
        redact: Removes secrets from quoted text.
    """
    identity = None
    try:
        identity = _identity(error, actor)
        certain = error is not None and _cause_from_ray(error) is not None
        evidence = _gather(identity, 0.0 if certain else WATCHER_TIMEOUT_S)
        if identity is not None and (error is None or isinstance(error, ActorUnavailableError)):
            # Ray detects a lost node late: by now it may know more than when it raised the error.
            identity = find_identity(identity.actor_id) or identity
            if identity.death:
                error = RayActorError(identity.actor_id, identity.death)
    except Exception as failure:  # a failing report must not hide the death
        evidence = ExitEvidence(missing=f"no evidence from its node: {failure!r}")
    found = diagnose(error or RayError("nothing"), evidence, identity)
    return PostMortem(
        cause=redact(found.cause),
        details=tuple(map(redact, found.details)),
        log_tail=tuple(map(redact, found.log_tail)),
    )


def diagnose(error: Exception, evidence: ExitEvidence, identity: ActorIdentity | None = None) -> PostMortem:
    """Return the cause from Ray's error and the node's evidence. Pure."""
    cause = _cause_from_ray(error) or _cause_from_status(evidence) or _cause_from_log(evidence.log_tail)
    if cause is None:
        cause = f"exit status not known; Ray reports: {_report(error)}"
    details = [evidence.missing] if evidence.missing else []
    if identity is not None and identity.pid:
        details.insert(0, f"process {identity.pid} on {identity.host}")
    return PostMortem(cause=cause, details=tuple(details), log_tail=evidence.log_tail)


def _cause_from_ray(error: Exception) -> str | None:
    """Return the cause if Ray ended the actor itself, or saw it exit."""
    text = _plain(str(error))
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        found = re.search(r"OOM kill reason: (.*)", text)
        return "out of memory: killed by Ray's memory monitor" + (f" ({found[1].strip()})" if found else "")
    if isinstance(error, ActorUnavailableError):
        return f"unreachable, possibly alive; Ray reports: {_report(error)}"
    if getattr(error, "actor_init_failed", False):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"failed to start: {lines[-1]}"
    if "killed by `ray.kill`" in text:
        return "killed by Duet (ray.kill)"
    if "its node has died" in text:
        found = re.search(r"Node Id: (\w+)", text)
        reason = re.search(r"reason message: (.*)", text)
        node = f" {found[1][:8]}" if found else ""
        return f"its node{node} is gone" + (f" ({reason[1].strip()})" if reason else "")
    if "its owner has died" in text:
        return "ended by Ray: the process that started it died"
    if "all references to the actor were removed" in text:
        return "ended by Ray: no references to it were left"
    for phrase in ("Could not create the actor", "worker startup repeatedly failed"):
        if phrase in text:
            return f"failed to start: {_report(error)}"
    found = re.search(r"exits with an exit code (-?\d+)\.", text)
    if found:
        signalled = " after SIGTERM" if "receives a SIGTERM" in text else ""
        return f"exited with code {found[1]}{signalled}"
    return None


def read_exit(status: int) -> str:
    """Describe an exit status as from waitpid."""
    number = status & 0x7F
    return f"killed by {_name(number)}" if number else f"exited with code {status >> 8 & 0xFF}"


def _cause_from_status(evidence: ExitEvidence) -> str | None:
    if evidence.status is None:
        return None
    cause = read_exit(evidence.status)
    if evidence.status & 0x7F != signal.SIGKILL:
        return cause
    if evidence.oom_kills is None:
        return f"{cause}; out of memory or not is unknown, its cgroup has no counter of out-of-memory kills"
    if evidence.oom_kills:
        return f"out of memory: {cause}, and the kernel's out-of-memory killer acted in its cgroup at that time"
    return cause


def _cause_from_log(lines: tuple[str, ...]) -> str | None:
    for line in reversed(lines):
        if line.startswith("Fatal Python error: "):
            message = line.removeprefix("Fatal Python error: ")
            return f"killed by {_name(FATAL[message])}" if message in FATAL else f"fatal error in Python: {message}"
    return None


def _name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _report(error: Exception) -> str:
    """Return Ray's message without its guesses and advice."""
    text = _plain(str(error))
    exit_type = re.search(r"Worker exit type: (\w+)", text)
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes include|$)", text, re.MULTILINE)
    if exit_type and detail:
        return f"{exit_type[1]}, {detail[1].strip()}"
    fields = re.compile(r"^\s*(class_name|actor_id|pid|name|namespace|ip): ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not fields.match(line)]
    return lines[-1] if lines else type(error).__name__


def _plain(text: str) -> str:
    return COLOUR.sub("", text)


def _identity(error: Exception | None, actor: Any) -> ActorIdentity | None:
    if isinstance(actor, ActorIdentity):
        return actor
    actor = actor if actor is not None else getattr(error, "actor_id", None)
    return find_identity(actor) if actor is not None else None


def _gather(identity: ActorIdentity | None, timeout_s: float) -> ExitEvidence:
    if identity is None or not identity.pid:
        return ExitEvidence(missing="Ray has no record of its process")
    try:
        return on_node(identity.node_id, evidence_here, identity.actor_id, identity.pid, timeout_s)
    except (RayError, TimeoutError) as error:
        first = _plain(str(error)).strip().splitlines()[0].partition(", and soft=False")[0]
        return ExitEvidence(missing=f"its logs are on node {identity.node_id[:8]}, which is unreachable: {first}")


def evidence_here(actor_id: str, pid: int, timeout_s: float) -> ExitEvidence:
    """Return the evidence for an actor that ran on this node. timeout_s: longest wait for its exit watcher."""
    logs = logs_directory()
    record, deadline = logs / f"member-{actor_id}.exit", time.monotonic() + timeout_s
    # Without stack files there is no watcher. Ray ends the watcher too when it ends the process itself.
    watched = any(logs.glob(f"member-{actor_id}-*.stacks"))
    while watched and not record.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = json.loads(record.read_text()) if record.exists() else {}
    return ExitEvidence(status=found.get("status"), oom_kills=found.get("oom_kills"), log_tail=_tail(logs, pid))


def _tail(logs: Path, pid: int) -> tuple[str, ...]:
    """Return the last lines of the process's stdout, then of its stderr, where a crash leaves its stack."""
    lines: list[str] = []
    for stream in ("out", "err"):
        for path in logs.glob(f"worker-*-{pid}.{stream}"):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - MAX_TAIL_BYTES))
                text = _plain(file.read().decode(errors="replace"))
            lines += [line.rstrip() for line in text.splitlines() if line.strip() and not NOISE.match(line)][
                -MAX_LINES:
            ]
    return tuple(lines)
