"""Causes from messages of Ray 2.60 and evidence of the node, recorded from real deaths."""

import os
import subprocess
import sys
import threading

import pytest
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from cluster import exit_watcher
from cluster.monitored_actor import ActorIdentity
from cluster.post_mortem import ExitEvidence, diagnose

HEAD = (
    "The actor died unexpectedly before finishing this task.\n"
    "\tclass_name: A\n\tactor_id: d2a5\n\tpid: 15962\n\tip: 10.0.0.2\n"
)
GONE = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed "
    "unexpectedly due to SIGSEGV or another unexpected error. If the process was killed by the kernel OOM killer "
    "(verifiable by checking for OOM in dmesg of the OOMing node), consider enabling resource isolation via "
    "--enable-resource-isolation to prevent node deaths by resource contention."
)
MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, ID: 51df) was "
    "7.18GB used / 23.54GB limit (0.305066)\nOOM kill reason: Memory usage 7710928896B exceeded threshold of "
    "252760624B (1.0% of 25276063744B limit)\nTop 10 memory users: PID\tMEM(GB)\tCOMMAND\n1\t2\tjudge --key=s3cret"
)
CREATION = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::A.__init__()\x1b[39m (pid=1)\n"
    '  File "a.py", line 7, in __init__\n    if fail: raise ValueError("bad init")\nValueError: bad init'
)


def died(text: str) -> RayActorError:
    return RayActorError("d2a5", HEAD + text)


@pytest.mark.parametrize(
    ("error", "evidence", "cause"),
    [
        (died(GONE), ExitEvidence(status=9, oom_kills=0), "killed by signal 9 (SIGKILL)"),
        (
            died(GONE),
            ExitEvidence(status=9, oom_kills=2),
            "out of memory: killed by signal 9 (SIGKILL), and the kernel's out-of-memory killer acted in its cgroup "
            "at that time",
        ),
        (
            died(GONE),
            ExitEvidence(status=9),
            "killed by signal 9 (SIGKILL); out of memory or not is unknown, its cgroup has no counter of "
            "out-of-memory kills",
        ),
        (died(GONE), ExitEvidence(status=3 << 8, oom_kills=1), "exited with code 3"),
        (died(GONE), ExitEvidence(status=11 | 0x80), "killed by signal 11 (SIGSEGV)"),
        (died(GONE), ExitEvidence(log_tail=("Fatal Python error: Aborted", "Stack:")), "killed by signal 6 (SIGABRT)"),
        (
            died(GONE),
            ExitEvidence(log_tail=("all is well",)),
            "exit status not known; Ray reports: SYSTEM_ERROR, Worker unexpectedly exits with a connection error code "
            "2. End of file.",
        ),
        (
            died(
                "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
                "detail: Worker exits unexpectedly. Worker exits with an exit code 1. The process receives a SIGTERM."
            ),
            ExitEvidence(),
            "exited with code 1 after SIGTERM",
        ),
        (died("The actor is dead because it was killed by `ray.kill`."), ExitEvidence(), "killed by Duet (ray.kill)"),
        (
            died(
                "The actor died because its node has died. Node Id: 0123456789abcdef\n\tthe actor's node was terminated"
            ),
            ExitEvidence(),
            "its node 01234567 is gone",
        ),
        (
            OutOfMemoryError(MEMORY),
            ExitEvidence(status=9),
            "out of memory: killed by Ray's memory monitor (Memory usage 7710928896B exceeded threshold of 252760624B "
            "(1.0% of 25276063744B limit))",
        ),
        (
            RayActorError("d2a5", CREATION, actor_init_failed=True),
            ExitEvidence(),
            "failed to start: ValueError: bad init",
        ),
        (
            ActorUnavailableError("RPC error: Socket closed", bytes(16)),
            ExitEvidence(),
            f"unreachable, possibly alive; Ray reports: The actor {'0' * 32} is unavailable: RPC error: Socket "
            "closed. The task may or may not have been executed on the actor.",
        ),
    ],
)
def test_the_cause(error, evidence, cause):
    found = diagnose(error, evidence)
    assert found.cause == cause
    assert "common causes" not in found.text()
    assert "s3cret" not in found.text()


def test_the_line_says_where_and_what_is_missing():
    who = ActorIdentity(actor_id="d2a5", pid=15962, node_id="ab" * 28, host="10.0.0.2", kind="RewardServer")
    found = diagnose(died(GONE), ExitEvidence(status=9, oom_kills=0, log_tail=("one", "two")), who)
    assert str(found) == "killed by signal 9 (SIGKILL); process 15962 on 10.0.0.2"
    assert found.text() == f"{found}\n    one\n    two"
    assert str(diagnose(died(GONE), ExitEvidence(missing="node is gone"))).endswith("; node is gone")


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("memory.events", "low 0\nhigh 3\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n", 2),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", None),
    ],
)
def test_the_counter_of_kills_in_either_version_of_cgroups(tmp_path, name, text, count):
    (tmp_path / name).write_text(text)
    assert exit_watcher.read_counter(tmp_path / name) == count
    assert exit_watcher.read_counter(tmp_path / "none") is None


@pytest.mark.parametrize(("code", "status"), [("os._exit(7)", 7 << 8), ("os.kill(os.getpid(), 9)", 9)])
def test_the_status_of_a_process_that_another_has_reaped(code, status):
    process = subprocess.Popen([sys.executable, "-c", f"import os; input(); {code}"], stdin=subprocess.PIPE)
    handle = os.pidfd_open(process.pid)
    reaped = threading.Thread(target=process.communicate, args=(b"\n",))
    reaped.start()
    reaped.join()
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    assert exit_watcher.exit_status(handle) == (status if release >= (6, 15) else None)
    os.close(handle)
