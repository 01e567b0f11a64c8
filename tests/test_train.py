"""The main job, for real: Ray, vLLM, DeepSpeed, decoded audio. And what the command line says to bad input."""

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

import pyarrow.parquet as pq
import pytest
import soundfile

from controller.records import read_events
from tests.commands import duet

pytestmark = pytest.mark.e2e
COLUMNS = """iteration weight_version lambda lambda_raw gate_quality gate_information loss_preference loss_anchor
kl_text kl_speech entropy_text entropy_speech score_answer score_heard score_manner logp_gap_text logp_gap_speech
replies replies_dropped seconds_rollout seconds_reward seconds_learn seconds_sync""".split()


@pytest.fixture(scope="module")
def run(root, few, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A run of three iterations with two rollout workers."""
    runs = tmp_path_factory.mktemp("runs")
    done = duet(
        root,
        "train",
        "run.iterations=3",
        "run.name=short",
        "run.seed=7",
        f"run.directory={runs}",
        f"data.held_out={{held_out: {few}}}",
        "rollout.workers=2",
        "evaluation.signal_samples=2",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return runs / "short", done


def test_summary_holds_what_the_contract_says(run):
    directory, _ = run
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["iterations"] == 3
    assert summary["weight_version"] == 3
    assert summary["seed"] == 7
    assert 0.0 <= summary["lambda_first"] <= 0.8
    for when in ("before", "after"):
        measured = summary["held_out"][when]
        assert measured["prompts"] == 32
        for name in ("answer", "heard", "manner"):
            assert 1.0 <= measured[name] <= 5.0
        for name in ("answer_accuracy", "heard_accuracy", "spoken_right"):
            assert 0.0 <= measured[name] <= 1.0
    # The base model speaks: most replies say what their text says.
    assert summary["held_out"]["before"]["heard_accuracy"] > 0.5
    assert summary["workers"] == {"rollout": 2, "reward": 2, "learner": 2}
    assert set(summary["versions"]) >= {"vllm", "ray", "deepspeed", "torch"}
    assert all(summary["seconds"][name] > 0 for name in ("total", "rollout", "reward", "learn", "sync"))
    assert summary["tokens"]["speech"] > summary["tokens"]["text"] > 0


def test_every_iteration_is_on_record(run):
    directory, _ = run
    rows = pq.read_table(directory / "iterations.parquet").to_pylist()
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert [row["weight_version"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert [name for name in COLUMNS if name not in row] == []
        assert row["replies"] == 64
        assert max(row["logp_gap_text"], row["logp_gap_speech"]) < 1e-4
        assert row["probe_gap"] < 1e-3
        assert row["loss"] == pytest.approx(
            (1 - row["lambda"]) * row["loss_anchor"] + row["lambda"] * row["loss_preference"], abs=1e-6
        )
    assert rows[1]["lambda"] == pytest.approx(0.1 * rows[1]["lambda_raw"] + 0.9 * rows[0]["lambda"], abs=1e-9)
    # The first step starts at the reference model.
    assert rows[0]["kl_text"] == pytest.approx(0.0, abs=1e-6)
    assert rows[2]["kl_text"] > 0


def test_every_reply_is_on_record(run):
    directory, _ = run
    for iteration in (1, 2, 3):
        rows = pq.read_table(directory / f"replies/{iteration:06d}.parquet").to_pylist()
        assert len(rows) == 64
        assert {row["weight_version"] for row in rows} == {iteration - 1}
        assert {row["worker"] for row in rows} == {"rollout-0", "rollout-1"}
        assert all(len(row["token_ids"]) == len(row["logps"]) == len(row["channels"]) for row in rows)


def test_there_is_something_to_see_and_hear(run):
    directory, done = run
    assert (directory / "lambda.png").stat().st_size > 5000
    assert (directory / "scores.png").stat().st_size > 5000
    recordings = sorted((directory / "audio").glob("*.wav"))
    assert len(recordings) == 18
    for path in recordings:
        samples, rate = soundfile.read(path)
        assert 0.2 < len(samples) / rate < 6.0
        assert abs(samples).max() > 0.01
    assert "λ" in done.stdout
    assert "answer" in done.stdout


def test_the_checkpoint_is_a_hugging_face_one_with_the_new_weights(run, world):
    from safetensors.torch import load_file

    directory, _ = run
    checkpoint = directory / "checkpoints" / "000003"
    new, old = load_file(checkpoint / "model.safetensors"), load_file(world / "base/model.safetensors")
    assert set(new) == set(old)
    assert any(not new[name].equal(old[name]) for name in new)
    assert (checkpoint / "tokenizer.json").read_bytes() == (world / "base/tokenizer.json").read_bytes()
    assert (checkpoint / "optimizer").is_dir()
    last = pq.read_table(directory / "iterations.parquet").to_pylist()[-1]
    state = json.loads((checkpoint / "controller.json").read_text())
    assert state == {
        "iteration": 3,
        "weight_version": 3,
        "mix": {"smoothed": pytest.approx(last["lambda"]), "updates": 3, "override": None},
        "prompts": 48,
        "demonstrations": 48,
    }


def test_a_name_that_is_taken_is_refused(root, run):
    directory, _ = run
    done = duet(root, "train", "run.name=short", f"run.directory={directory.parent}")
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_is_one_sentence_and_nothing_is_written(root, world, tmp_path):
    broken = tmp_path / "broken.parquet"
    table = pq.read_table(world / "data/train.parquet").slice(0, 20)
    pq.write_table(table.drop_columns(["facts"]), broken)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            "run.itertions=3": "unknown configuration key 'run.itertions'",
            "rollout.group_size=1": "rollout.group_size: 1",
            "rollout.prompts=100000": "rollout.prompts: 100000",
            f"data.prompts={broken}": "has no column 'facts'",
            "reward.codec.use=nowhere:Codec": "reward.codec: 'nowhere:Codec' cannot be loaded",
            "reward.codec.arguments.path=/nowhere": "/nowhere",
            "model.checkpoint=/nowhere": "/nowhere is not a checkpoint",
            f"metrics.port={port}": f"metrics.port: port {port} on 127.0.0.1 is in use",
        }
        for override, complaint in cases.items():
            done = duet(root, "train", override, "run.name=bad", f"run.directory={tmp_path / 'runs'}")
            assert done.returncode == 2, done.stderr
            assert complaint in done.stderr
            assert "Traceback" not in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_running_job_takes_another_lambda_and_a_signal_ends_it_in_order(root, few, tmp_path):
    job = subprocess.Popen(
        [
            sys.executable, "-m", "controller", "train", "run.iterations=500", "run.name=stopped",
            f"run.directory={tmp_path}", f"data.held_out={{held_out: {few}}}", "evaluation.signal_samples=0",
        ],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )  # fmt: skip
    output, taken = [], []
    for line in job.stdout:
        output.append(line)
        if "1/500" in line and not taken:  # the first iteration's row
            taken.append(duet(root, "mix", str(tmp_path / "stopped"), "fixed=0.123", "--wait", "60"))
        elif "0.123" in line and "/500" in line:  # a row with the λ that was asked for
            job.send_signal(signal.SIGTERM)  # as Ctrl-C, which a shell makes its background jobs ignore
            break
    try:
        rest, _ = job.communicate(timeout=200)
    finally:
        job.kill()
    assert job.returncode == 0, "".join(output) + rest
    assert taken[0].returncode == 0, taken[0].stderr
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert 1 <= summary["iterations"] < 40
    checkpoint = tmp_path / f"stopped/checkpoints/{summary['iterations']:06d}"
    assert (checkpoint / "model.safetensors").is_file()
    assert json.loads((checkpoint / "controller.json").read_text())["mix"]["override"] == 0.123
    rows = pq.read_table(tmp_path / "stopped/iterations.parquet").to_pylist()
    assert [row["lambda"] == 0.123 for row in rows] == [bool(row["mix_overridden"]) for row in rows]
    assert (rows[0]["mix_overridden"], rows[-1]["mix_overridden"]) == (0, 1)
    [event] = [e for e in read_events(tmp_path / "stopped") if e["kind"] == "mix"]
    assert next(row["iteration"] for row in rows if row["mix_overridden"]) == event["iteration"]
    refused = duet(root, "mix", str(tmp_path / "stopped"), "adaptive")
    assert refused.returncode == 2
    assert "has finished" in refused.stderr


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
    deadline = time.monotonic() + 90
    try:
        # A job that does nothing: the dashboard answers before the agent that runs jobs is there.
        while ray(root, environment, "job", "submit", "--address", address, "--", "true").returncode != 0:
            assert head.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline, f"no Ray head within 90 s\n{(tmp_path / 'head.log').read_text()}"
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
