"""A job while it runs: who can talk to it, what it takes from outside, and how a signal ends it.

See docs/security.md for what listens where.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pyarrow.parquet as pq
import pytest

from observability.run_directory import read_events
from tests.commands import Job, duet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Its directory."""
    return tmp_path_factory.mktemp("running") / "stopped"


@pytest.fixture(scope="module")
def job(root, few, run) -> Iterator[Job]:
    """A run without an end, in its iterations, started from a shell that had switched Ray's token off."""
    arguments = (
        "train", "train.num_steps=500", "run.name=stopped", f"run.directory={run.parent}",
        f"data.validation={{held_out: {few}}}", "validation.num_quality_samples=0", "reward.num_servers=1",
    )  # fmt: skip
    with Job(root, run.parent / "output.txt", *arguments, RAY_AUTH_MODE="disabled") as started:
        started.until(lambda output: "1/500" in output, "the first iteration")
        yield started


def listening(process: psutil.Process) -> set[str]:
    """Addresses at which a process takes connections."""
    connections = process.net_connections(kind="inet") if process.is_running() else []
    return {
        c.laddr.ip
        for c in connections
        if c.status == psutil.CONN_LISTEN or (c.type == socket.SOCK_DGRAM and not c.raddr)
    }


def is_local(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def test_every_member_listens_on_this_machine_only(job):
    sockets: dict[str, set[str]] = {}
    for process in job.processes:
        sockets.setdefault(process.name(), set()).update(listening(process))
    listeners = {name for name, addresses in sockets.items() if addresses}
    assert {"gcs_server", "raylet"} <= listeners
    for name in ("LearnerRank", "RolloutWorke", "RewardServer", "Controller"):  # the system cuts names at 15 characters
        assert any(name in listener for listener in listeners), name
    assert {(name, a) for name, addresses in sockets.items() for a in addresses if not is_local(a)} == set()


def test_members_are_told_to_stay_local_whatever_the_name_of_the_machine_means(job):
    """gloo listens at the address of the host's name, which is local on some machines and not on others."""
    members = [process for process in job.processes if "LearnerRank" in " ".join(process.cmdline())]
    assert len(members) == 2
    for process in members:
        environment = process.environ()
        assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "lo"
        assert environment["VLLM_HOST_IP"] == "127.0.0.1"


def test_the_cluster_answers_nobody_without_the_token(job):
    """Not even where a shell had switched tokens off."""
    [store] = [process for process in job.processes if process.name() == "raylet"]
    address = re.search(r"--gcs-address=(\S+)", " ".join(store.cmdline()))
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    with grpc.insecure_channel(address[1]) as channel:
        ask = channel.unary_unary(NODES)
        for metadata in ((), (("authorization", f"Bearer {'0' * 64}"),)):
            with pytest.raises(grpc.RpcError) as refusal:
                ask(b"", timeout=20, metadata=metadata)
            assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert ask(b"", timeout=20, metadata=(("authorization", f"Bearer {token}"),))


def test_it_takes_another_lambda_and_size_and_a_signal_ends_it_in_order(root, job, run):
    for asked in (("set-lambda", str(run), "fixed=0.123"), ("scale", str(run), "reward=2")):
        answer = duet(root, *asked, "--wait", "60")
        assert answer.returncode == 0, answer.stderr
    # A row with the λ that was asked for.
    job.until(lambda output: re.search(r"/500.*0\.123", output) is not None, "an iteration with another λ")
    assert job.stop() == 0, job.output
    summary = json.loads((run / "summary.json").read_text())
    assert 1 <= summary["iterations"] < 100
    checkpoint = run / f"checkpoints/{summary['iterations']:06d}"
    assert (checkpoint / "model.safetensors").is_file()
    assert json.loads((checkpoint / "controller.json").read_text())["mix"]["override"] == 0.123
    rows = pq.read_table(run / "iterations.parquet").to_pylist()
    assert [row["lambda"] == 0.123 for row in rows] == [bool(row["mix_overridden"]) for row in rows]
    assert (rows[0]["mix_overridden"], rows[-1]["mix_overridden"]) == (0, 1)
    [event] = [e for e in read_events(run) if e["kind"] == "mix"]
    assert next(row["iteration"] for row in rows if row["mix_overridden"]) == event["iteration"]
    assert summary["workers"] == {"rollout": 1, "reward": 2, "learner": 2}
    scaled = [e for e in read_events(run) if e["kind"] in ("scale", "actor_starting")]
    assert [(e["kind"], e.get("member", "")) for e in scaled] == [("scale", ""), ("actor_starting", "reward-1")]
    refused = duet(root, "set-lambda", str(run), "adaptive")
    assert refused.returncode == 2
    assert "has finished" in refused.stderr
