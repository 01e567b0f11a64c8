"""The Prometheus endpoint, scraped over HTTP."""

import json
import re
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.replica_state import PoolStatus, ReplicaState
from common.errors import InputError
from observability.metrics.collector import MetricsCollector
from observability.metrics.docs import render_tables
from observability.metrics.live import LiveMetrics, RunStatus
from observability.metrics.metric import FAULTS, LABELS, MOST_VALUES, OTHER
from observability.metrics.registry import METRICS, OF_ITERATIONS, OF_STATE
from observability.metrics.server import MetricsServer, scrape_targets
from observability.metrics.training import MetricsObservation
from tests.controller.examples import iteration

STANDING = RunStatus(
    phase="rollout",
    seconds=2.5,
    pools={
        "rollout": PoolStatus(
            target=3, replicas={ReplicaState.READY: 2, ReplicaState.STARTING: 1}, restarts=4, in_flight=10, queued=6
        ),
        "reward": PoolStatus(target=1, replicas={ReplicaState.READY: 1}, restarts=0),
        "learner": PoolStatus(target=2, replicas={ReplicaState.READY: 2}, restarts=1),
    },
    versions={"learner": 7, "rollout": 6},
)
JUDGES = {"judge": {"calls": 20, "retries": 3, "latency_seconds": 4.5, "failures": 1, "cost": 0.25}}


class Served:
    """Metrics, and what a scrape of them finds."""

    def __init__(self) -> None:
        self.standing: RunStatus | None = None
        self.members = {"rollout-0": ":4711", "rollout-1": "10.0.0.2:4712"}
        self.numbers = MetricsCollector(40, lambda: self.standing)
        self.endpoint = MetricsServer()
        self.endpoint.start(self.numbers, "a run", lambda: self.members)

    def observe(self, number: int, judges: Mapping = JUDGES, **changes) -> None:
        self.numbers.observe(iteration(number, **changes), judges, {"judge": 1} if judges else {})

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.endpoint.port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Value by sample name and label values."""
        families = text_string_to_metric_families(self.get("/metrics"))
        samples = [sample for family in families for sample in family.samples]
        return {(s.name, *s.labels.values()): s.value for s in samples}


@pytest.fixture
def served():
    served = Served()
    yield served
    served.endpoint.close()


def test_every_metric_is_served_with_prefix(served):
    served.standing = STANDING
    served.observe(1, speech=dict.fromkeys(iteration().speech, 1.0))
    served.observe(2, judges={"judge": dict.fromkeys(COUNTERS, 1.0)})
    found = served.scrape()
    for metric in METRICS:
        assert metric.name.startswith("duet_")
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.name in {name for name, *_ in found}, metric.name
    assert found["duet_mix_ratio",] == pytest.approx(0.22)


COUNTERS = (
    "calls", "retries", "latency_seconds", "cache_hits", "failures", "unavailable", "breaker_openings",
    "input_tokens", "output_tokens", "cost",
)  # fmt: skip


def test_gates_scores_and_reasons_are_labelled(served):
    served.observe(1)
    found = served.scrape()
    assert found["duet_mix_gate", "quality"] == 0.9
    assert found["duet_score", "answer"] == pytest.approx(2.1)
    assert found["duet_kl_nats", "speech"] == 0.002
    assert found["duet_scores_missing_total", "truncated reply"] == 2


def test_what_has_no_number_has_no_series(served):
    served.observe(1, kl_text=0.5)
    assert ("duet_kl_nats", "text") in served.scrape()
    served.observe(2, kl_text=None, judges={})
    found = served.scrape()
    assert ("duet_kl_nats", "text") not in found
    assert not any(label == "manner" for _, *label in found)
    assert not any("judge" in name for name, *_ in found)
    assert ("duet_judge_input_tokens_total", "judge") not in found
    assert not any(name in ("duet_members", "duet_phase_now_seconds") for name, *_ in found)


def test_counters_add_up_but_those_that_are_whole_already(served):
    for number in (1, 2):
        served.observe(number)
    found = served.scrape()
    assert found["duet_tokens_total", "speech"] == 3000
    assert found["duet_tokens_total", "text"] == 600
    assert found["duet_judge_requests_total", "judge"] == 20
    assert found["duet_judge_cost_total", "judge"] == 0.25


def test_how_the_run_stands_is_read_when_it_is_asked(served):
    assert served.scrape()["duet_iterations_wanted",] == 40
    served.standing = STANDING
    found = served.scrape()
    assert found["duet_members", "rollout", "ready"] == 2
    assert found["duet_members", "rollout", "starting"] == 1
    assert found["duet_members", "learner", "dead"] == 0
    assert found["duet_members_wanted", "rollout"] == 3
    assert found["duet_restarts_total", "rollout"] == 4
    assert found["duet_work_items", "rollout", "waiting"] == 6
    assert found["duet_work_items", "rollout", "lent"] == 10
    assert found["duet_weight_version", "rollout"] == 6
    assert [found["duet_phase_now", p] for p in ("rollout", "learn", "other")] == [1, 0, 0]
    assert found["duet_phase_now_seconds",] == 2.5


def test_faults_are_counted_by_kind_and_start_at_none(served):
    assert [served.scrape()["duet_faults_total", kind] for kind in FAULTS] == [0] * len(FAULTS)
    for kind in ("actor_died", "actor_died", "stalled", "checkpoint"):
        served.numbers.event(kind)
    found = served.scrape()
    assert (found["duet_faults_total", "actor_died"], found["duet_faults_total", "stalled"]) == (2, 1)
    assert ("duet_faults_total", "checkpoint") not in found


def test_every_kind_of_fault_is_told_somewhere(root):
    rooms = ("cluster", "controller", "learner", "reward", "rollout")
    code = "\n".join(path.read_text() for room in rooms for path in (root / room).rglob("*.py"))
    told = set(re.findall(r"(?:_tell|emit_event)\(\s*\"([a-z_]+)\"", code))
    assert set(FAULTS) <= told


def test_speech_is_shown_beside_that_of_the_first_iteration(served):
    served.observe(1)
    served.observe(2, speech={"pitch_semitones": 14.5})
    found = served.scrape()
    assert found["duet_speech_pitch_semitones", "now"] == 14.5
    assert found["duet_speech_pitch_semitones", "start"] == 11.0
    assert ("duet_heard_word_error_ratio", "start") not in found
    # A run that goes on knows it from its records.
    resumed = MetricsCollector(40, lambda: None)
    resumed.begin({"pitch_semitones": 9.0})
    resumed.observe(iteration(8), {}, {})
    [family] = [f for f in resumed.collect() if f.name == "duet_speech_pitch_semitones"]
    assert {sample.labels["when"]: sample.value for sample in family.samples} == {"now": 11.0, "start": 9.0}


def test_labels_have_few_values(served):
    """Nobody adds a label whose values grow with the run; one that could is cut off."""
    seen = MetricsObservation(iteration=iteration(), start=iteration().speech, judges=JUDGES, left_alone={"judge": 0})
    state = LiveMetrics(iterations=1, progress=0.0, faults={}, own_seconds=0.0, loop=STANDING)
    for metrics, of in ((OF_ITERATIONS, seen), (OF_STATE, state)):
        for metric in metrics:
            assert set(metric.labels) <= set(LABELS), metric.name
            for values in metric.values(of):
                assert len(values) == len(metric.labels), metric.name
                for label, value in zip(metric.labels, values, strict=True):
                    allowed = LABELS[label].values
                    assert allowed is None or value in allowed, (metric.name, value)
    open_ended = [m for m in METRICS if any(LABELS[label].values is None for label in m.labels)]
    assert all(len(metric.labels) == 1 for metric in open_ended)
    for number in (1, 2):
        many = {f"reason {number} {place}": 1 for place in range(100)}
        served.observe(number, missing=many, scores={f"rater {place}": 1.0 for place in range(100)})
    found = served.scrape()
    reasons = {labels[0]: value for (name, *labels), value in found.items() if name == "duet_scores_missing_total"}
    assert len(reasons) == MOST_VALUES + 1
    assert sum(reasons.values()) == 200
    assert reasons[OTHER] == 200 - MOST_VALUES
    raters = [labels[0] for name, *labels in found if name == "duet_score"]
    assert len(raters) == MOST_VALUES
    assert OTHER not in raters


def test_what_metrics_cost_is_a_metric_too(served):
    with served.numbers.spending():
        served.observe(1)
    first = served.scrape()["duet_metrics_seconds_total",]
    assert 0 < first < served.scrape()["duet_metrics_seconds_total",]


def test_targets_change_with_the_pool(served):
    at = f"127.0.0.1:{served.endpoint.port}"

    def found() -> dict[str, list[str]]:
        listed = json.loads(served.get("/targets"))
        assert {target["labels"]["run"] for target in listed} == {"a run"}
        return {target["labels"]["instance"]: target["targets"] for target in listed}

    assert found() == {"controller": [at], "rollout-0": ["127.0.0.1:4711"], "rollout-1": ["10.0.0.2:4712"]}
    served.members = {"rollout-2": "10.0.0.3:4713"}
    assert found() == {"controller": [at], "rollout-2": ["10.0.0.3:4713"]}


@pytest.mark.parametrize(
    ("asked", "host"),
    [("head:9400", "head"), ("[fd00::1]:9400", "[fd00::1]"), ("10.0.0.1:9", "10.0.0.1"), ("", "127.0.0.1")],
)
def test_what_is_on_the_controllers_machine_is_found_where_it_is(asked, host):
    listed = scrape_targets("r", {"rollout-0": ":4711", "rollout-1": "10.0.0.2:1"}, asked, 9400)
    assert [target["targets"] for target in listed] == [[f"{host}:9400"], [f"{host}:4711"], ["10.0.0.2:1"]]


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"metrics.port: port {port} on 127.0.0.1 is in use"):
            MetricsServer(port=port).probe()


def test_the_page_is_current(root: Path):
    page = (root / "docs/metrics.md").read_text("utf-8")
    assert page == render_tables(page), "run: python -m observability.metrics.docs docs/metrics.md"
