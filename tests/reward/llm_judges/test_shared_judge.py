"""A local judge in a cluster: one for all who ask, found again when it is lost, gone when nobody is left."""

import os
import time

import pytest
import ray

from cluster.monitored_actor import find_identity
from reward.llm_judges import vllm_service
from reward.llm_judges.vllm_judge import LocalRater, LocalSettings
from reward.llm_judges.vllm_service import JudgeServer, There, Users
from tests.reward.askers import Asker
from tests.reward.llm_judges.tiny_judges import write_reader
from tests.reward.spoken import spoken

USUAL = {"name": "judge", "rubric": "semantic", "listens": False, "dtype": "float32", "sure": 0.0, "max_length": 4096}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    checkpoint = write_reader(tmp_path_factory.mktemp("judges") / "reader")
    return USUAL | {"checkpoint": str(checkpoint), "cpus": 0.5}


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def ended(actor, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not find_identity(actor).death:
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def test_reward_servers_share_one_judge_and_it_is_started_again(cluster, arguments):
    made = ray.remote(Asker).options(num_cpus=0.5)
    askers = [made.remote(arguments), made.remote(arguments | {"facts": ["answer"]})]
    (first, version), (second, other) = ray.get([asker.rate.remote("one", "two") for asker in askers], timeout=200)
    assert all(1 <= score <= 5 for score in first + second)
    assert first != second  # they tell it different things
    assert version.split("/")[1] == other.split("/")[1]
    judges = [row for row in ray._private.state.actors().values() if row["ActorClassName"] == "JudgeServer"]
    assert len(judges) == 1
    own = LocalRater(**arguments)  # the driver's
    assert own.version == version
    assert own.rate(spoken("one")) == pytest.approx(first[0], abs=1e-5)

    # Whoever started it may go, and the judge stays.
    ray.kill(askers[0])
    assert isinstance(own.rate(spoken("three")), float)
    assert own.counters()["retries"] == 0
    # One that is lost is started again, and says the same.
    os.kill(judges[0]["Pid"], 9)
    assert isinstance(own.rate(spoken("four")), float)
    assert own.counters()["retries"] >= 1
    assert LocalRater(**arguments).rate(spoken("one")) == pytest.approx(first[0], abs=1e-5)
    again = [row for row in ray._private.state.actors().values() if row["ActorClassName"] == "JudgeServer"]
    assert sorted(row["State"] for row in again) == ["ALIVE", "DEAD"]


def test_a_judge_ends_when_nobody_who_uses_it_lives(cluster, arguments):
    class Nobody:
        pass

    user = ray.remote(Nobody).options(num_cpus=0).remote()
    judge = ray.remote(JudgeServer).options(num_cpus=0, lifetime="detached", max_concurrency=9)
    judge = judge.remote(LocalSettings.from_arguments(arguments).engine, linger=3.0)  # much less than loading takes
    name = user._actor_id.hex()
    assert ray.get(judge.hello.remote(name), timeout=200)
    time.sleep(6)
    assert not find_identity(judge).death
    ray.kill(user)
    assert ended(judge, 20)


def test_a_judge_that_finds_no_room_says_so(cluster, arguments):
    settings = LocalSettings.from_arguments(arguments | {"gpus": 1, "start_seconds": 1.5, "max_sequences": 3})
    with pytest.raises(TimeoutError, match=r"was not up within 2 s \(start_seconds\); it needs 1 GPU more than"):
        There(settings.engine, settings.room)


def test_users_are_counted_as_long_as_ray_knows_them(monkeypatch):
    alive = {"a", "b"}
    monkeypatch.setattr(vllm_service, "_lives", lambda user: user in alive)
    clock = [0.0]
    monkeypatch.setattr(vllm_service.time, "monotonic", lambda: clock[0])
    users = Users(linger=20.0)
    users.add("a")
    users.add("b")
    alive.discard("a")
    clock[0] = 100.0
    assert not users.deserted()
    alive.clear()
    clock[0] = 119.0
    assert not users.deserted()
    clock[0] = 121.0
    assert users.deserted()
