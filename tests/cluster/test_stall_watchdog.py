"""Stalls: reported once, with the stacks of all actors, also of stopped and dead ones."""

import os
import signal
import time

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.monitored_actor import MonitoredActor
from cluster.stall_watchdog import PendingCall, Stall, StallDetector, StallMonitor, StallReport


def test_a_stall_is_reported_once_and_again_after_progress():
    detector = StallDetector(10.0, now=100.0)
    assert detector.check(109.9) is None
    assert detector.check(110.0) == Stall(seconds=10.0, last="the start")
    assert detector.check(500.0) is None
    detector.touch("iteration 3: rollout", 500.0)
    assert detector.check(509.0) is None
    assert detector.check(511.0) == Stall(seconds=11.0, last="iteration 3: rollout")
    assert StallDetector(0.0, now=0.0).check(1e9) is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 30.0)), max_size=40))
def test_between_two_steps_of_progress_there_is_at_most_one_stall_and_never_an_early_one(steps):
    now = since = 0.0
    detector, stalls = StallDetector(10.0, now=now), 0
    for progress, seconds in steps:
        now += seconds
        if progress:
            detector.touch("work", now)
            since, stalls = now, 0
        elif (stall := detector.check(now)) is not None:
            stalls += 1
            assert stall.seconds == now - since >= 10.0
        elif now - since >= 10.0:
            assert stalls == 1
        assert stalls <= 1


class Sleeper(MonitoredActor):
    def ready(self) -> int:
        return os.getpid()

    def nap(self) -> None:
        time.sleep(300)


@pytest.fixture(scope="module")
def sleepers(cluster):
    remote = ray.remote(Sleeper).options(num_cpus=0)
    return [remote.remote() for _ in range(4)]


@pytest.mark.e2e
@pytest.mark.xdist_group("cluster")
def test_the_report_lists_pending_calls_and_all_stacks(sleepers, tmp_path):
    pids = ray.get([sleeper.ready.remote() for sleeper in sleepers], timeout=60)
    asked = time.monotonic() - 42
    for sleeper in sleepers[:2]:
        sleeper.nap.remote()
    time.sleep(0.3)
    os.kill(pids[1], signal.SIGSTOP)
    ray.kill(sleepers[3])

    def members() -> list[PendingCall]:
        names = ["reward-0", "rollout-1", "learner-0", "rollout-2"]
        busy = {"reward-0": "scoring with key-123", "rollout-1": "sampling 8 replies"}
        return [
            PendingCall(name=name, actor=sleeper, doing=busy.get(name, ""), since=asked + (name == "rollout-1"))
            for name, sleeper in zip(names, sleepers, strict=True)
        ]

    events: list[dict] = []
    report = StallReport(tmp_path, members, redact=lambda text: text.replace("key-123", "…"))
    with StallMonitor(
        StallDetector(1.5, time.monotonic()), report, lambda kind, **fields: events.append({"kind": kind, **fields})
    ):
        deadline = time.monotonic() + 30
        while not events:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2.5)
    [event] = events
    assert event["kind"] == "stalled"
    assert event["summary"].startswith("no progress for ")
    assert "waiting for reward-0 (scoring with …, 4" in event["summary"]
    assert "rollout-1 (sampling 8 replies, 4" in event["summary"]
    [path] = (tmp_path / "stalls").iterdir()
    assert event["summary"].endswith(f"stacks in stalls/{path.name}")
    text = path.read_text()
    assert "key-123" not in text
    parts = dict(part.split("\n", 1) for part in text.split("\n==== ")[1:])
    own = "test_the_report_lists_pending_calls_and_all_stacks"
    assert own in parts["controller"]
    assert "in nap" in parts["reward-0, pending: scoring with …"]
    assert "T (stopped)" in parts["rollout-1, pending: sampling 8 replies"]
    assert "no stacks received" in parts["rollout-1, pending: sampling 8 replies"]
    assert "in main_loop" in parts["learner-0"]
    assert f"process {pids[3]}: gone" in parts["rollout-2"]
    os.kill(pids[1], signal.SIGKILL)


def test_a_failed_report_is_an_event_and_harms_nothing(tmp_path):
    def members() -> list[PendingCall]:
        raise RuntimeError("dictionary changed size during iteration")

    events: list[str] = []
    detector = StallDetector(0.1, time.monotonic())
    with StallMonitor(detector, StallReport(tmp_path, members), lambda kind, summary: events.append(summary)) as watch:
        deadline = time.monotonic() + 10
        while len(events) < 2:
            assert time.monotonic() < deadline
            watch.touch("something")
            time.sleep(1.2)
    assert "no report: RuntimeError('dictionary changed size" in events[0]
