"""What a dead actor died of: what is known for sure, and its last log lines.

Sources, in the order in which they are believed: Ray, where it ended the process itself or saw it leave (ray.kill, an
exit code, its memory monitor, a lost node, an error in __init__); the member's sentinel, which reads the exit status
from the kernel; the fatal signal that Python wrote into the member's log. When none of them knows, that is what is
said. Ray's guesses and advice are left out.
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

LINES = 20
"""Last log lines that are kept, of each stream."""
TAIL_BYTES = 64 * 1024
SENTINEL_SECONDS = 1.0
"""How long the sentinel's word is waited for: Ray may report a death before the process is gone."""
FATAL = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
"""What Python's faulthandler, which Ray switches on, writes before the process dies of a signal."""
NOISE = re.compile(r"^:(job_id|actor_name|task_name):")
"""Marks that Ray writes into logs for itself."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
UNKNOWN = "connection error code"
"""In Ray's text: the process was gone, nothing else is known."""


@dataclass(frozen=True, kw_only=True)
class ExitEvidence:
    """What the member's node knows."""

    status: int | None = None
    """Exit status as waitpid gives it."""
    oom_kills: int | None = None
    """Kills of the kernel's out-of-memory killer in the member's cgroup in its last seconds."""
    log_tail: tuple[str, ...] = ()
    missing: str = ""
    """Why there is no evidence."""


@dataclass(frozen=True, kw_only=True)
class PostMortem:
    cause: str
    """"killed by signal 9 (SIGKILL)"."""
    details: tuple[str, ...] = ()
    """What else is known, a sentence each."""
    log_tail: tuple[str, ...] = ()
    """The member's last log lines, oldest first."""

    def __str__(self) -> str:
        return "; ".join((self.cause, *self.details))

    def text(self) -> str:
        """All of it, over several lines."""
        return "\n".join((str(self), *(f"    {line}" for line in self.log_tail)))


def describe(
    error: Exception | None, actor: Any = None, redact: Callable[[str], str] = lambda text: text
) -> PostMortem:
    """What happened to the actor of which Ray raised `error` (RayActorError, OutOfMemoryError).

    error: None where nothing but the death is known. actor: its handle, hexadecimal id or Identity; None: whom the
    error names. redact: takes secrets out of what is quoted. Never raises; takes up to about ten seconds when the
    node does not answer, otherwise well below two.
    """
    identity = None
    try:
        identity = _identity(error, actor)
        told = error is not None and _by_ray(error) is not None
        evidence = _gather(identity, 0.0 if told else SENTINEL_SECONDS)
        if identity is not None and (error is None or isinstance(error, ActorUnavailableError)):
            # Ray finds out about a lost node late: by now it may know more than it did when it raised the error.
            identity = find_identity(identity.actor_id) or identity
            if identity.death:
                error = RayActorError(identity.actor_id, identity.death)
    except Exception as failure:  # a report of a failure must not become one
        evidence = ExitEvidence(missing=f"its node was not asked: {failure!r}")
    found = diagnose(error or RayError("nothing"), evidence, identity)
    return PostMortem(
        cause=redact(found.cause),
        details=tuple(map(redact, found.details)),
        log_tail=tuple(map(redact, found.log_tail)),
    )


def diagnose(error: Exception, evidence: ExitEvidence, identity: ActorIdentity | None = None) -> PostMortem:
    """The cause from Ray's error and what the node knows. Pure."""
    cause = _by_ray(error) or _by_status(evidence) or _by_log(evidence.log_tail)
    if cause is None:
        cause = f"exit status not known; Ray reports: {_report(error)}"
    details = [evidence.missing] if evidence.missing else []
    if identity is not None and identity.pid:
        details.insert(0, f"process {identity.pid} on {identity.host}")
    return PostMortem(cause=cause, details=tuple(details), log_tail=evidence.log_tail)


def _by_ray(error: Exception) -> str | None:
    """Where Ray ended the member itself, or saw it leave."""
    text = _plain(str(error))
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        found = re.search(r"OOM kill reason: (.*)", text)
        return "out of memory: killed by Ray's memory monitor" + (f" ({found[1].strip()})" if found else "")
    if isinstance(error, ActorUnavailableError):
        return f"not reachable, perhaps not dead; Ray reports: {_report(error)}"
    if getattr(error, "actor_init_failed", False):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"could not be made: {lines[-1]}"
    if "killed by `ray.kill`" in text:
        return "ended by us (ray.kill)"
    if "its node has died" in text:
        found = re.search(r"Node Id: (\w+)", text)
        reason = re.search(r"reason message: (.*)", text)
        node = f" {found[1][:8]}" if found else ""
        return f"its node{node} is gone" + (f" ({reason[1].strip()})" if reason else "")
    if "its owner has died" in text:
        return "ended by Ray: the process that had started it died"
    if "all references to the actor were removed" in text:
        return "ended by Ray: nobody held it any more"
    for phrase in ("Could not create the actor", "worker startup repeatedly failed"):
        if phrase in text:
            return f"could not be made: {_report(error)}"
    found = re.search(r"exits with an exit code (-?\d+)\.", text)
    if found:
        signalled = "; it had received SIGTERM" if "receives a SIGTERM" in text else ""
        return f"exited with code {found[1]}{signalled}"
    return None


def read_exit(status: int) -> str:
    """A status as waitpid gives it, in words."""
    number = status & 0x7F
    return f"killed by {_name(number)}" if number else f"exited with code {status >> 8 & 0xFF}"


def _by_status(evidence: ExitEvidence) -> str | None:
    if evidence.status is None:
        return None
    cause = read_exit(evidence.status)
    if evidence.status & 0x7F != signal.SIGKILL:
        return cause
    if evidence.oom_kills is None:
        return f"{cause}; whether for lack of memory is not known, its cgroup has no counter of such kills"
    if evidence.oom_kills:
        return f"out of memory: {cause}, and the kernel's out-of-memory killer struck in its cgroup at that time"
    return cause


def _by_log(lines: tuple[str, ...]) -> str | None:
    for line in reversed(lines):
        if line.startswith("Fatal Python error: "):
            said = line.removeprefix("Fatal Python error: ")
            return f"killed by {_name(FATAL[said])}" if said in FATAL else f"fatal error in Python: {said}"
    return None


def _name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _report(error: Exception) -> str:
    """What Ray says, without its guesses and advice."""
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


def _gather(identity: ActorIdentity | None, seconds: float) -> ExitEvidence:
    if identity is None or not identity.pid:
        return ExitEvidence(missing="Ray knows no process of it")
    try:
        return on_node(identity.node_id, evidence_here, identity.actor_id, identity.pid, seconds)
    except (RayError, TimeoutError) as error:
        first = _plain(str(error)).strip().splitlines()[0].partition(", and soft=False")[0]
        return ExitEvidence(missing=f"its logs are on node {identity.node_id[:8]}, which could not be asked: {first}")


def evidence_here(actor_id: str, pid: int, seconds: float) -> ExitEvidence:
    """What this node knows of a member that ran here. seconds: how long its sentinel may take."""
    logs = logs_directory()
    word, deadline = logs / f"member-{actor_id}.exit", time.monotonic() + seconds
    # No stacks, no sentinel; and Ray takes the sentinel along when it ends the process itself.
    watched = any(logs.glob(f"member-{actor_id}-*.stacks"))
    while watched and not word.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    said = json.loads(word.read_text()) if word.exists() else {}
    return ExitEvidence(status=said.get("status"), oom_kills=said.get("oom_kills"), log_tail=_tail(logs, pid))


def _tail(logs: Path, pid: int) -> tuple[str, ...]:
    """Last lines of what the process printed, then of what it wrote to stderr, where a crash leaves its stack."""
    lines: list[str] = []
    for stream in ("out", "err"):
        for path in logs.glob(f"worker-*-{pid}.{stream}"):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                text = _plain(file.read().decode(errors="replace"))
            lines += [line.rstrip() for line in text.splitlines() if line.strip() and not NOISE.match(line)][-LINES:]
    return tuple(lines)
