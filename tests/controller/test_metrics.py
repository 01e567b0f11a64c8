"""The Prometheus endpoint, scraped over HTTP."""

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.metrics import METRICS, Metrics
from speech.errors import InputError
from tests.controller.examples import iteration


@pytest.fixture
def metrics():
    served = Metrics()
    served.start()
    yield served
    served.close()


def scrape(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Value by sample name and label value."""
    with urllib.request.urlopen(f"http://{metrics.host}:{metrics.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, next(iter(s.labels.values()), "")): s.value for s in samples}


def test_every_metric_is_served_with_prefix(metrics):
    metrics.observe(iteration(1), {"rollout-0": 1})
    served = scrape(metrics)
    names = {name for name, _ in served}
    for metric in METRICS:
        assert metric.name.startswith("duet_")
        assert names & {metric.name, f"{metric.name}_total"}, metric.name
    assert served["duet_mix_ratio", ""] == pytest.approx(0.21)


def test_gates_scores_and_versions_are_labelled(metrics):
    metrics.observe(iteration(1), {"rollout-0": 1, "rollout-1": 1})
    served = scrape(metrics)
    by_label = {label for _, label in served}
    assert {"quality", "information", "answer", "heard", "text", "speech", "rollout-1", "truncated reply"} <= by_label


def test_what_has_no_number_has_no_series(metrics):
    metrics.observe(iteration(1, kl_text=0.5), {})
    assert any("kl" in name and label == "text" for name, label in scrape(metrics))
    metrics.observe(iteration(2, kl_text=None), {})
    assert not any("kl" in name and label == "text" for name, label in scrape(metrics))
    assert not any(label == "manner" for _, label in scrape(metrics))


def test_counters_add_up(metrics):
    for number in (1, 2):
        metrics.observe(iteration(number), {})
    served = scrape(metrics)
    assert served["duet_tokens_total", "speech"] == 3000
    assert served["duet_tokens_total", "text"] == 600


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"metrics.port: port {port} on 127.0.0.1 is in use"):
            Metrics(port=port).start()
