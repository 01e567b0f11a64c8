"""The scripts of deploy/, with another program in the place of Ray's: what they ask of it, and what they refuse."""

import json
import os
import subprocess

import pytest

RAY = """#!/usr/bin/env python3
import json, os, sys
json.dump({"arguments": sys.argv[1:], "environment": dict(os.environ)}, open(os.environ["SEEN"], "w"))
"""


@pytest.fixture
def script(root, tmp_path):
    """Runs a script of deploy/ in a copy, where there is no .venv; returns how it ended and what `ray` was asked."""
    for name in ("node.sh", "submit.sh"):
        copy = tmp_path / "deploy" / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((root / "deploy" / name).read_bytes())
        copy.chmod(0o755)
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text(RAY)
    ray.chmod(0o755)
    seen = tmp_path / "seen.json"

    def run(*command: str, **environment: str) -> tuple[subprocess.CompletedProcess, dict]:
        seen.unlink(missing_ok=True)
        done = subprocess.run(
            [str(tmp_path / "deploy" / command[0]), *command[1:]],
            env={"PATH": f"{ray.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "SEEN": str(seen)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done, json.loads(seen.read_text()) if seen.is_file() else {}

    return run


def after(words: list[str], word: str) -> str:
    return words[words.index(word) + 1]


def test_a_job_takes_the_arguments_of_train_and_time_to_stop(script):
    done, asked = script("submit.sh", "--config", "a b.yaml", "run.name=x", RAY_ADDRESS="http://head:8265")
    assert done.returncode == 0, done.stderr
    words = asked["arguments"]
    assert words[:2] == ["job", "submit"]
    command = ["python", "-m", "duet", "train", "--config", "a b.yaml", "run.name=x"]
    assert words[words.index("--") + 1 :] == command
    environment = json.loads(after(words, "--runtime-env-json"))
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "3600"}
    assert {".venv", "runs"} <= set(environment["excludes"])
    assert "--no-wait" not in words


def test_what_a_job_is_submitted_with_can_be_changed(script):
    more = {"RAY_ADDRESS": "http://head:8265", "NO_WAIT": "1", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    _, asked = script("submit.sh", "--resume", "/shared/runs/x", **more)
    words = asked["arguments"]
    assert "--no-wait" in words[: words.index("--")]
    environment = json.loads(after(words, "--runtime-env-json"))
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [({}, "set RAY_ADDRESS"), ({"RAY_ADDRESS": "x", "RAY_JOB_STOP_WAIT_TIME_S": '1", "a": "b'}, "whole number")],
)
def test_nothing_is_submitted_to_nowhere_or_with_nonsense(script, environment, complaint):
    done, asked = script("submit.sh", **environment)
    assert (done.returncode, asked) == (2, {})
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ("head", "--autoscaling-config=a b.yaml"),
            ["start", "--head", "--port=6379", "--autoscaling-config=a b.yaml"],
        ),
        (
            ("worker", "10.0.0.1:6379", '--resources={"a": 1}'),
            ["start", "--address=10.0.0.1:6379", '--resources={"a": 1}'],
        ),
    ],
)
def test_a_node_asks_for_the_token_and_gives_jobs_time_to_stop(script, tmp_path, command, words):
    done, asked = script("node.sh", *command, RAY_AUTH_TOKEN="t" * 64, RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert [word for word in asked["arguments"] if word != "--disable-usage-stats"] == words
    assert asked["environment"]["RAY_AUTH_MODE"] == "token"
    assert asked["environment"]["RAY_JOB_STOP_WAIT_TIME_S"] == "3600"
    assert "t" * 64 not in " ".join(asked["arguments"])
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("t" * 64)
    done, _ = script("node.sh", *command)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "complaint"),
    [(("head",), "no token"), (("worker", "somewhere"), "no token"), ((), "no token")],
)
def test_a_node_does_not_start_without_a_token(script, command, complaint):
    done, asked = script("node.sh", *command)
    assert (done.returncode, asked) == (2, {})
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("command", "complaint"), [((), "head or worker"), (("tail",), "'tail'"), (("worker",), "HOST:6379")]
)
def test_a_node_is_a_head_or_a_worker_of_one(script, command, complaint):
    done, asked = script("node.sh", *command, RAY_AUTH_TOKEN="t" * 64)
    assert (done.returncode, asked) == (2, {})
    assert complaint in done.stderr


def test_every_script_can_be_run_and_read(root):
    for path in [*(root / "deploy").glob("*.sh"), *(root / "scripts").glob("*.sh")]:
        assert os.access(path, os.X_OK), path
        subprocess.run(["bash", "-n", str(path)], check=True)
