"""One vLLM server for all reward servers of a cluster: shared, restarted when it dies, ended with its last user."""

import os
import signal
from pathlib import Path

import httpx
import pytest
import ray

from cluster.monitored_actor import find_identity
from reward.llm_judges import vllm_service
from reward.llm_judges.vllm_judge import VllmJudge, VllmJudgeConfig
from reward.llm_judges.vllm_server import ServerFailed
from reward.llm_judges.vllm_service import JudgeServer, SharedService, Users
from tests.reward.askers import Asker
from tests.reward.llm_judges.server_processes import command_lines, server_pids, wait_until
from tests.reward.llm_judges.tiny_judges import write_reader
from tests.reward.spoken import spoken

pytestmark = pytest.mark.timeout(1500)
USUAL = {"name": "judge", "rubric": "semantic", "listens": False, "dtype": "float32", "sure": 0.0, "max_length": 4096}
USUAL["start_seconds"] = 400  # both processes of the server import vLLM, slowly on a busy machine


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    checkpoint = write_reader(tmp_path_factory.mktemp("judges") / "reader")
    return USUAL | {"checkpoint": str(checkpoint), "cpus": 0.5}


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def judge_actors() -> list[dict]:
    return [row for row in ray._private.state.actors().values() if row["ActorClassName"] == "JudgeServer"]


@pytest.mark.e2e
def test_reward_servers_share_one_server_and_it_is_restarted(cluster, arguments):
    checkpoint = arguments["checkpoint"]
    made = ray.remote(Asker).options(num_cpus=0.5)
    askers = [made.remote(arguments), made.remote(arguments | {"facts": ["answer"]})]
    (first, version), (second, other) = ray.get([asker.rate.remote("one", "two") for asker in askers], timeout=400)
    assert all(1 <= score <= 5 for score in first + second)
    assert first != second  # their prompts differ
    assert version.split("/")[1] == other.split("/")[1]
    [actor] = judge_actors()
    [server] = server_pids(checkpoint)
    own = VllmJudge(**arguments)  # in the driver
    assert own.version == version
    assert own.rate(spoken("one")) == pytest.approx(first[0], abs=1e-5)
    environment = Path(f"/proc/{server}/environ").read_text().split("\0")
    [key] = [line.removeprefix("VLLM_API_KEY=") for line in environment if line.startswith("VLLM_API_KEY=")]
    assert len(key) > 30
    assert not any(key in part for command in command_lines().values() for part in command)

    # Paths that vLLM itself leaves open need the key, too.
    url = own._client[0].url.removesuffix("/v1")
    for path in ("/v1/models", "/tokenize", "/invocations", "/metrics"):
        assert httpx.get(f"{url}{path}", trust_env=False).status_code == 401

    # The actor that started the server may go, and the server stays.
    ray.kill(askers[0])
    assert isinstance(own.rate(spoken("three")), float)
    assert own.counters()["retries"] == 0
    # A dead server is restarted by its actor, and gives the same scores.
    os.kill(server, signal.SIGKILL)
    assert isinstance(own.rate(spoken("four")), float)
    assert own.counters()["retries"] >= 1
    assert VllmJudge(**arguments).rate(spoken("one")) == pytest.approx(first[0], abs=1e-5)
    [again] = server_pids(checkpoint)
    assert again != server
    assert [row["State"] for row in judge_actors()] == ["ALIVE"]
    # A dead actor takes its server with it; the next question starts another actor.
    os.kill(actor["Pid"], signal.SIGKILL)
    assert wait_until(lambda: again not in server_pids(checkpoint), 30)
    assert isinstance(own.rate(spoken("five")), float)
    assert sorted(row["State"] for row in judge_actors()) == ["ALIVE", "DEAD"]


@pytest.mark.e2e
def test_a_server_ends_with_its_last_user(cluster, arguments, tmp_path):
    class User:
        pass

    checkpoint = str(write_reader(tmp_path / "reader"))
    user = ray.remote(User).options(num_cpus=0).remote()
    judge = ray.remote(JudgeServer).options(num_cpus=0, lifetime="detached", max_concurrency=9)
    config = VllmJudgeConfig.from_arguments(arguments | {"checkpoint": checkpoint}).server
    judge = judge.remote(config, 400.0, linger_s=3.0)  # much less than the start takes
    assert ray.get(judge.connect.remote(user._actor_id.hex()), timeout=400).model
    assert not wait_until(lambda: bool(find_identity(judge).death), 6)
    ray.kill(user)
    assert wait_until(lambda: bool(find_identity(judge).death), 30)
    assert wait_until(lambda: server_pids(checkpoint) == [], 20)


@pytest.mark.e2e
def test_a_server_that_does_not_fit_or_start_says_so(cluster, arguments, tmp_path):
    config = VllmJudgeConfig.from_arguments(arguments | {"gpus": 1, "start_seconds": 1.5, "max_sequences": 3})
    with pytest.raises(TimeoutError, match=r"was not up within 2 s \(start_seconds\); it needs 1 GPU more than"):
        SharedService(config.server, config.placement)
    damaged = write_reader(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    config = VllmJudgeConfig.from_arguments(arguments | {"checkpoint": str(damaged), "cpus": 0})
    with pytest.raises(
        ServerFailed, match=r"damaged ended with status 1 at its start; the end of its log:\n(.|\n)*rror"
    ):
        SharedService(config.server, config.placement)


def test_users_count_while_ray_knows_them_alive(monkeypatch):
    alive = {"a", "b"}
    monkeypatch.setattr(vllm_service, "_is_alive", lambda user: user in alive)
    clock = [0.0]
    monkeypatch.setattr(vllm_service.time, "monotonic", lambda: clock[0])
    users = Users(linger_s=20.0)
    users.add("a")
    users.add("b")
    alive.discard("a")
    clock[0] = 100.0
    assert not users.all_gone()
    alive.clear()
    clock[0] = 119.0
    assert not users.all_gone()
    clock[0] = 121.0
    assert users.all_gone()
