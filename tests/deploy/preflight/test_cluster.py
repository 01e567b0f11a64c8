"""The doctor joins a real Ray cluster, sees its nodes, and leaves it as it was. Half a minute, most of it Ray's."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.operate
NO_MODEL = "model.path=/nowhere"
"""Ends what builds on the model, which is not what these tests are about."""


@pytest.fixture
def head(tmp_path):
    """(address, environment) of a Ray head without a dashboard, which asks for a token; ended by its process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    short = tempfile.mkdtemp(prefix="duet-ray-")  # Ray's sockets lie below it, and their paths may have 107 characters
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=3", f"--port={port}",
            '--resources={"rollout": 1}', "--include-dashboard=false", f"--temp-dir={short}", "--disable-usage-stats",
        ],
        env=environment,
        cwd=tmp_path,
        stdout=log,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    try:
        while "Ray runtime started" not in (tmp_path / "head.log").read_text():
            assert process.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline, f"no Ray head within 200 s\n{(tmp_path / 'head.log').read_text()}"
            time.sleep(0.2)
        yield f"127.0.0.1:{port}", environment
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()
        log.close()
        shutil.rmtree(short, ignore_errors=True)


def examined(root, environment, *overrides: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "duet", "doctor", "--json", NO_MODEL, *overrides],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)["findings"]
    return [finding for finding in found if finding["check"] in ("cluster", "cores and GPUs")]


@pytest.mark.timeout(800)
def test_a_cluster_is_joined_looked_at_and_left(root, head):
    address, environment = head
    asking = ("rollout.resources={rollout: 1}", "rollout.num_workers=2", "rollout.num_cpus=1")
    cluster, short = examined(root, environment, f"cluster.address={address}", *asking)
    assert (cluster["state"], short["state"]) == ("fine", "warning"), (cluster, short)
    assert cluster["text"].startswith(f"{address}: 1 node, ")
    assert "the actors need 2 rollout (rollout 2 × 1); the cluster has 1 now" in short["text"]
    without = {key: value for key, value in environment.items() if not key.startswith("RAY_AUTH")}
    (refused,) = examined(
        root, without | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"}, f"cluster.address={address}"
    )
    assert refused["state"] == "error"
    assert f"cannot join a Ray cluster at {address}" in refused["text"]
