"""A job that is submitted to a Ray cluster."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def ray(root: Path, environment: dict, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).parent / "ray"), *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture
def cluster(root, tmp_path):
    """A Ray head of its own, on free ports, ended by its own process ids."""

    def free_port() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    port, dashboard, agent = free_port(), free_port(), free_port()
    # Jobs call `python`: it must be the one of this environment.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PATH": path}
    # A token of its own: the head asks for it, the client sends it.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    short = tempfile.mkdtemp(prefix="duet-ray-")  # Ray's sockets lie below it, and their paths may have 107 characters
    log = (tmp_path / "head.log").open("w")
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={short}",
            "--disable-usage-stats",
        ],
        env=environment,
        cwd=tmp_path,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 240
    try:
        # A job that does nothing: the dashboard answers before the agent that runs jobs is there.
        while ray(root, environment, "job", "submit", "--address", address, "--", "true").returncode != 0:
            assert head.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline, f"no Ray head within 240 s\n{(tmp_path / 'head.log').read_text()}"
            time.sleep(1)
        yield environment, address
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # the head's own children outlive it now and then
        log.close()
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.timeout(400)
def test_ray_job_submit(root, cluster, few, tmp_path):
    environment, address = cluster
    done = ray(
        root, environment, "job", "submit", "--address", address, "--working-dir", ".", "--",
        "python", "-m", "controller", "train", "run.iterations=2", "run.name=job", f"run.directory={tmp_path / 'runs'}",
        f"data.held_out={{held_out: {few}}}", "evaluation.signal_samples=0",
        seconds=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "runs/job/summary.json").read_text())
    assert summary["iterations"] == 2
