"""Real actors: inspected while busy, and dead in many ways."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.monitored_actor import MonitoredActor, find_identity, on_node, stacks_of
from cluster.post_mortem import describe

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("cluster")]
EXACT = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 15)
"""True if the kernel keeps the exit status of a process for other processes than its parent."""


class Busy(MonitoredActor):
    def __init__(self, fail: bool = False, start_seconds: float = 0.0) -> None:
        super().__init__()
        print("token=abc123 is printed", flush=True)
        self._child = subprocess.Popen(["sleep", "300"])
        time.sleep(start_seconds)
        if fail:
            raise ValueError("no such codec")

    def pids(self) -> tuple[int, int]:
        return os.getpid(), self._child.pid

    def in_main_thread(self) -> bool:
        return threading.current_thread() is threading.main_thread()

    def nap(self) -> None:
        time.sleep(300)

    def hold_the_lock(self, seconds: int) -> None:
        ctypes.PyDLL(None).sleep(seconds)  # a foreign function that does not release the interpreter's lock

    def leave(self, code: int) -> None:
        os._exit(code)

    def resign(self) -> None:
        raise SystemExit(4)

    def crash(self) -> None:
        ctypes.string_at(0)


@pytest.fixture
def make_actor(cluster):
    return ray.remote(Busy).options(num_cpus=0).remote


def death(answer) -> Exception:
    with pytest.raises(RayActorError) as caught:
        ray.get(answer, timeout=60)
    return caught.value


def test_stacks_of_a_busy_actor(make_actor):
    busy = make_actor()
    assert ray.get(busy.in_main_thread.remote(), timeout=60)
    pid, _ = ray.get(busy.pids.remote(), timeout=60)
    busy.nap.remote()
    time.sleep(0.3)
    seen = find_identity(busy)
    assert seen is not None
    assert (seen.pid, seen.kind) == (pid, "Busy")
    text = stacks_of(busy)
    assert f"process {pid}: S" in text
    assert "in nap" in text
    assert stacks_of(busy).count("in nap") == 1, "the second time brings the second dump only"
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert "T (stopped)" in (text := stacks_of(busy, 1.0))
    assert "no stacks received" in text
    assert time.monotonic() - began < 2
    os.kill(pid, signal.SIGKILL)


def test_stacks_of_an_actor_that_holds_the_interpreter_lock(make_actor):
    stuck = make_actor()
    ray.get(stuck.pids.remote(), timeout=60)
    stuck.hold_the_lock.remote(30)
    time.sleep(0.3)
    assert "in hold_the_lock" in stacks_of(stuck)
    ray.kill(stuck)


def test_stacks_of_an_actor_that_hangs_in_its_start(make_actor):
    slow = make_actor(start_seconds=60.0)
    deadline = time.monotonic() + 20
    while "in __init__" not in stacks_of(slow):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ray.kill(slow)


def test_a_process_without_a_handler_is_not_signalled(make_actor):
    busy = make_actor()
    pid, child = ray.get(busy.pids.remote(), timeout=60)
    place = on_node(find_identity(busy).node_id, lambda: str(ray._private.worker._global_node.get_logs_dir_path()))
    with open(f"{place}/member-{find_identity(busy).actor_id}-{child}.stacks", "w"):
        text = stacks_of(busy)
    assert f"process {pid}" in text
    os.kill(child, 0)
    ray.kill(busy)


@pytest.mark.parametrize(
    ("kill", "sure", "otherwise"),
    [
        ("signal", "killed by signal 9 (SIGKILL)", "exit status not known"),
        ("leave", "exited with code 3", "exit status not known"),
        ("crash", "killed by signal 11 (SIGSEGV)", "killed by signal 11 (SIGSEGV)"),
        ("resign", "exited with code 4", "exited with code 4"),
        ("terminate", "exited with code 1 after SIGTERM", "exited with code 1 after SIGTERM"),
        ("ours", "killed by Duet (ray.kill)", "killed by Duet (ray.kill)"),
    ],
)
def test_the_cause_of_a_death_is_named(make_actor, kill, sure, otherwise):
    dying = make_actor()
    pid, _ = ray.get(dying.pids.remote(), timeout=60)
    if kill in ("leave", "crash", "resign"):
        answer = {"leave": lambda: dying.leave.remote(3), "crash": dying.crash.remote, "resign": dying.resign.remote}[
            kill
        ]()
    else:
        answer = dying.nap.remote()
        time.sleep(0.3)
        if kill == "ours":
            ray.kill(dying)
        else:
            os.kill(pid, signal.SIGKILL if kill == "signal" else signal.SIGTERM)
    found = describe(death(answer), redact=lambda text: text.replace("abc123", "…"))
    assert found.cause == (sure if EXACT else otherwise) or found.cause.startswith(f"{sure}; out of memory or not")
    assert f"process {pid} on " in str(found)
    assert "\n" not in str(found)
    assert "common causes" not in found.text()
    assert "token=… is printed" in found.log_tail
    if kill == "crash":
        assert any("in crash" in line for line in found.log_tail)


def test_child_processes_of_an_actor_end_with_it(make_actor):
    """The raylet kills the process group of a worker that dies."""
    dying = make_actor()
    pid, child = ray.get(dying.pids.remote(), timeout=60)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_start_that_fails_is_named(make_actor):
    found = describe(death(make_actor(fail=True).pids.remote()))
    assert found.cause == "failed to start: ValueError: no such codec"


def test_actors_on_another_node_are_inspected_there_and_a_lost_node_is_named(cluster):
    node = cluster.add_node(num_cpus=1)
    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    remote = ray.remote(Busy).options(num_cpus=0, scheduling_strategy=there)
    first, second = remote.remote(), remote.remote()
    pid, _ = ray.get(first.pids.remote(), timeout=60)
    survivor, child = ray.get(second.pids.remote(), timeout=60)
    answer, waiting = first.nap.remote(), second.nap.remote()
    time.sleep(0.3)
    assert "in nap" in stacks_of(first)
    os.kill(pid, signal.SIGKILL)
    found = describe(death(answer))
    assert "token=abc123 is printed" in found.log_tail
    assert "SIGKILL" in found.cause or not EXACT
    cluster.remove_node(node, allow_graceful=False)
    lost = describe(death(waiting))
    assert lost.cause.startswith(f"its node {node.node_id[:8]} is gone")
    assert "is unreachable" in str(lost)
    assert "not reached" in stacks_of(second)
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{left}") for left in (survivor, child)):
        assert time.monotonic() < deadline, "an actor or its child process outlives their node"
        time.sleep(0.1)


def test_no_signal_handler_outside_an_actor():
    code = (
        "import os, signal; from cluster.monitored_actor import MonitoredActor; MonitoredActor(); "
        "print(signal.getsignal(signal.SIGUSR2) == 0)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "True\n"
