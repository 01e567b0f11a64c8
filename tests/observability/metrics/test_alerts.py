"""Alerts fire for what they are about, and not for a run that goes as it should."""

import re
import shutil
import subprocess

import pytest
import yaml

from observability.metrics.registry import METRICS

WHAT_A_PERSON_NEEDS = ("summary", "description", "action")


@pytest.fixture(scope="module")
def alerts(root) -> list[dict]:
    content = yaml.safe_load((root / "deploy/prometheus/alerts.yml").read_text("utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def test_every_alert_says_what_it_is_and_what_to_do(alerts):
    for alert in alerts:
        for name in WHAT_A_PERSON_NEEDS:
            assert len(alert["annotations"].get(name, "")) > 30, (alert["alert"], name)
        assert "{{ $labels.run }}" in alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in ("warning", "critical")


def test_alerts_ask_for_metrics_that_there_are(alerts):
    exported = {metric.name for metric in METRICS}
    for alert in alerts:
        assert set(re.findall(r"\bduet_[a-z0-9_]+", alert["expr"])) <= exported, alert["alert"]


def test_there_is_an_alert_for_each_thing_that_goes_wrong_unseen(alerts):
    assert {alert["alert"] for alert in alerts} == {
        "DuetLambdaAtZero", "DuetAcousticDrift", "DuetScoresMissing", "DuetNoProgress", "DuetLogProbabilityGap",
    }  # fmt: skip


@pytest.mark.operate
def test_alerts_fire_for_made_up_series(root, tool, tmp_path):
    tool("prometheus")  # promtool comes with it
    rules = yaml.safe_load((root / "deploy/prometheus/alerts.yml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(root / "tests/observability/metrics/alerts.yml", tmp_path / "test.yml")
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
