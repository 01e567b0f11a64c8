"""A real Prometheus scrapes a real run: it finds every endpoint, and every panel and alert gets an answer."""

import pytest

from deploy.grafana.dashboards import expressions
from deploy.grafana.panels import ROWS
from observability.metrics.metric import LABELS, MAX_LABEL_VALUES
from observability.metrics.registry import METRICS
from tests.observability.metrics.prometheus import scraped

pytestmark = [pytest.mark.operate, pytest.mark.e2e, pytest.mark.timeout(700)]
NOT_HERE = {"duet_pair_accuracy_ratio"}
"""Metrics that a run has only where pairs train."""
RUN = "scraped"


@pytest.fixture(scope="module")
def seen(root, few, tool, tmp_path_factory):
    tool("prometheus")
    settings = (f"data.validation={{held_out: {few}}}", "rollout.num_workers=2")
    with scraped(root, tmp_path_factory.mktemp("scraped"), *settings, iterations=4, seconds=600) as found:
        yield found


@pytest.mark.parametrize("title", ROWS)
def test_every_panel_shows_something(seen, title):
    prometheus, start, end = seen
    empty = []
    for panel, expression in expressions(title):
        found = prometheus.series(expression.replace("$run", RUN), start, end)
        if not found and not any(name in expression for name in NOT_HERE):
            empty.append((panel.title, expression))
    assert empty == []


def test_every_alert_can_be_evaluated(seen):
    prometheus, start, end = seen
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 5
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules} == {
        (rule["name"], "ok", "") for rule in rules
    }
    for rule in rules:
        prometheus.ask("query_range", query=rule["query"], start=start, end=end, step="1s")


def test_the_controller_and_both_workers_were_found_and_answered(seen):
    prometheus, start, end = seen
    found = prometheus.ask(
        "query_range", query=f'max_over_time(up{{run="{RUN}"}}[10s])', start=start, end=end, step="1s"
    )
    up = {one["metric"]["instance"] for one in found["result"] if any(value == "1" for _, value in one["values"])}
    assert up == {"controller", "rollout-0", "rollout-1"}


def test_what_vllm_counts_is_what_was_sampled(seen):
    """Evaluation included, the engines have sampled no less than the iterations say, and not twice as much."""
    prometheus, start, end = seen
    [replies] = prometheus.series(f'duet_replies_total{{run="{RUN}"}}', start, end)
    assert replies[-1][1] == 4 * 64
    for worker in ("rollout-0", "rollout-1"):
        done = prometheus.series(
            f'sum(vllm:request_success_total{{run="{RUN}", instance="{worker}", finished_reason="stop"}})', start, end
        )
        assert done[0][-1][1] > 0.3 * replies[-1][1]


def test_names_and_labels_are_those_of_the_table(seen):
    prometheus, start, end = seen
    names = prometheus.ask("label/__name__/values", start=start, end=end)
    assert {name for name in names if name.startswith("duet_")} == {m.name for m in METRICS} - NOT_HERE
    counts = prometheus.ask("series", **{"match[]": '{__name__=~"duet_.*"}'}, start=start, end=end)
    for metric in METRICS:
        most = 1
        for label in metric.labels:
            most *= len(LABELS[label].values or range(MAX_LABEL_VALUES + 1))
        assert sum(series["__name__"] == metric.name for series in counts) <= most, metric.name


def test_metrics_cost_the_controller_next_to_nothing(seen):
    """With a scrape every second. `python -m tests.observability.metrics.cost` measures each process's part."""
    prometheus, start, end = seen
    spent = prometheus.growth(f'duet_metrics_seconds_total{{run="{RUN}"}}', start, end)
    worked = prometheus.growth(f'sum(duet_phase_seconds_total{{run="{RUN}"}})', start, end)
    [[*_, (last, _)]] = prometheus.series(f'duet_metrics_seconds_total{{run="{RUN}"}}', start, end)
    [[(first, _), *_]] = prometheus.series(f'duet_metrics_seconds_total{{run="{RUN}"}}', start, end)
    assert worked > 0
    assert spent / (last - first) < 0.01
