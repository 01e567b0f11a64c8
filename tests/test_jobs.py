"""Jobs on a Ray cluster, by Ray's own command line and by deploy/submit.sh."""

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
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from observability.run_directory import read_events
from tests.commands import duet

pytestmark = pytest.mark.operate


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
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={port}",
            '--resources={"rollout": 1, "reward": 2, "learner": 2}',
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
            head.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)  # the head's own children outlive it now and then
        log.close()
        shutil.rmtree(short, ignore_errors=True)


def until(met: Callable[[], bool], what: str, told: Callable[[], str], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{told()}"
        time.sleep(0.2)


@pytest.mark.timeout(900)
def test_a_job_is_scaled_stopped_and_resumed_by_another(root, cluster, few, tmp_path):
    """One run of three iterations, in two jobs, configured for a cluster whose nodes are for one role each."""
    environment, address = cluster
    run = tmp_path / "runs/job"
    settings = (
        "--config", "configs/cpu-cluster.yaml", "train.num_steps=3", "run.name=job", f"run.directory={run.parent}",
        f"data.validation={{held_out: {few}}}", "validation.num_quality_samples=0", "reward.num_servers=1",
        "rollout.batch_size=48",
    )  # fmt: skip

    def job(*arguments: str) -> str:
        done = ray(root, environment | {"RAY_ADDRESS": address}, "job", *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def events(kind: str) -> list[dict]:
        return [event for event in read_events(run) if event["kind"] == kind]

    command = ("python", "-m", "duet", "train", *settings)
    job("submit", "--no-wait", "--submission-id", "first", "--working-dir", ".", "--", *command)
    until(lambda: run.is_dir() and bool(events("ready")), "a run that has started", lambda: job("logs", "first"))
    weights = run / "weights"  # where cpu-cluster.yaml has them pass
    scaled = duet(root, "scale", str(run), "reward=2", "--wait", "200")
    assert scaled.returncode == 0, scaled.stderr + job("logs", "first")
    assert events("scale")[0]["value"] == {"reward": 2}
    assert len(list(weights.glob("*.safetensors"))) in (1, 2)

    # Ray gives the driver three seconds here, and then kills it: the controller brings its iteration to an end alone.
    job("stop", "first")
    assert "was stopped" in job("status", "first")
    logs = job("logs", "first")
    assert "duet train  job" in logs
    assert "48 prompts × 4 = 192" in logs
    until((run / "summary.json").is_file, "a run that was stopped to end", (run / "events.jsonl").read_text)
    assert [len(events(kind)) for kind in ("stop_requested", "failed")] == [1, 0]
    done = json.loads((run / "summary.json").read_text())["iterations"]
    assert done in (1, 2)
    assert (run / f"checkpoints/{done:06d}/controller.json").is_file()

    # The second job goes on from there, with the pools as they were.
    resumed = subprocess.run(
        ["deploy/submit.sh", "--resume", str(run)],
        cwd=root,
        env=environment | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stdout[-4000:] + resumed.stderr[-2000:]
    assert f"after iteration {done}" in resumed.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["iterations"], summary["workers"]) == (3, {"rollout": 1, "reward": 2, "learner": 2})
    rows = pq.read_table(run / "iterations.parquet").to_pylist()
    assert [row["iteration"] for row in rows] == [row["weight_version"] + 1 for row in rows] == [1, 2, 3]
