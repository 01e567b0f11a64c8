"""The server process of a judge: its command line, and that it never outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from reward.llm_judges import process_guard
from reward.llm_judges.require_key import RequireKey
from reward.llm_judges.vllm_server import ServerFailed, VllmServer, VllmServerConfig, server_command, server_environment
from tests.reward.llm_judges.server_processes import group_members, wait_until

CONFIG = VllmServerConfig(
    checkpoint="/models/judge",
    listens=False,
    dtype="auto",
    max_length=4096,
    max_sequences=8,
    threads=2,
    kv_cache_gib=0.4,
    gpu_memory_share=0.5,
    tensor_parallel=1,
    trust_remote_code=False,
)
FAMILY = (
    "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); {}"
)
"""A command with a child of its own, as vLLM's server has."""


def guard(parent: int, code: str) -> subprocess.Popen:
    command = [sys.executable, "-c", FAMILY.format(code)]
    return subprocess.Popen([sys.executable, "-I", "-S", process_guard.__file__, str(parent), *command])


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.fixture
def parent():
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def started(process: subprocess.Popen) -> int:
    """Return the process group of the command, once the command and its child run."""
    assert wait_until(lambda: bool(children(process.pid)), 20)
    [server] = children(process.pid)
    assert wait_until(lambda: len(group_members(server)) == 2, 20)
    return server


def test_the_whole_group_ends_with_the_parent(parent):
    process = guard(parent.pid, "time.sleep(300)")
    group = started(process)
    parent.kill()
    parent.wait()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert group_members(group) == []


def test_the_whole_group_ends_with_the_command_and_its_status_is_passed_on(parent):
    process = guard(parent.pid, "time.sleep(1); sys.exit(3)")
    group = started(process)
    assert process.wait(20) == 3
    assert group_members(group) == []


def test_a_guard_that_is_told_to_stop_ends_the_group(parent):
    process = guard(parent.pid, "time.sleep(300)")
    group = started(process)
    process.terminate()
    assert process.wait(20) == 143
    assert group_members(group) == []


def test_the_command_is_told_to_stop_when_its_guard_is_killed(parent):
    process = guard(parent.pid, "time.sleep(300)")
    group = started(process)
    process.kill()
    process.wait()
    assert wait_until(lambda: group not in group_members(group), 10)
    for left in group_members(group):  # vLLM's server ends its children itself
        os.kill(left, signal.SIGKILL)


def test_the_key_is_in_the_environment_and_not_on_the_command_line():
    environment = server_environment(CONFIG, "sk-secret")
    assert environment["VLLM_API_KEY"] == "sk-secret"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment["OMP_NUM_THREADS"] == "2"
    command = server_command(CONFIG, "name", "127.0.0.1", 4321)
    assert not any("sk-secret" in part for part in command)
    assert command[command.index("--load-format") + 1] == "safetensors"
    assert command[command.index("--generation-config") + 1] == "vllm"
    assert "--trust-remote-code" not in command
    assert "--limit-mm-per-prompt" not in command


def test_a_server_that_cannot_start_says_so_with_the_end_of_its_log(tmp_path, monkeypatch):
    from reward.llm_judges import vllm_server

    code = "import os, sys; print('no weights for', os.environ['VLLM_API_KEY']); sys.exit(7)"
    monkeypatch.setattr(vllm_server, "engine_version", lambda config: "v")
    monkeypatch.setattr(vllm_server, "server_command", lambda *_: [sys.executable, "-c", code])
    server = VllmServer(CONFIG, "127.0.0.1", tmp_path / "log")
    with pytest.raises(
        ServerFailed, match=r"/models/judge ended with status 7 at its start; .*\nno weights for \[key\]"
    ):
        server.start(30)
    monkeypatch.setattr(vllm_server, "server_command", lambda *_: ["sleep", "300"])
    with pytest.raises(ServerFailed, match=r"did not answer within 1 s \(start_seconds\); raise start_seconds"):
        server.start(1)
    assert server.wait(0)


@pytest.mark.parametrize(
    ("path", "header", "passes"),
    [
        ("/v1/chat/completions", b"Bearer sk-secret", True),
        ("/tokenize", b"Bearer sk-secret", True),
        ("/health", b"", True),
        ("/v1/chat/completions", b"", False),
        ("/v1/chat/completions", b"Bearer sk-other", False),
        ("/invocations", b"", False),
        ("/tokenize", b"sk-secret", False),
        ("/health/", b"", False),
    ],
)
def test_every_path_but_health_needs_the_key(monkeypatch, path, header, passes):
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret")
    sent, passed = [], []

    async def app(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"authorization", header)] if header else []}
    asyncio.run(RequireKey(app)(scope, None, send))
    assert passed == ([path] if passes else [])
    assert [message["status"] for message in sent if "status" in message] == ([] if passes else [401])
