"""Ports and hosts."""

import socket

import pytest

from deploy.preflight.environment import check_hosts, check_metrics
from deploy.preflight.finding import Severity
from tests.deploy.preflight.cases import all_fine, configured, only

JUDGE = (
    "reward.functions=[{name: judge, target: 'reward.remote.http_judge:HttpJudge', "
    "kwargs: {name: judge, version: '1', url: 'https://judge.example/rate'}}]"
)
SCORES = ("reward.weights={judge: 1}", "reward.composites={}")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_port_that_is_free_and_one_that_is_not(root):
    all_fine(check_metrics(configured(root)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = only(check_metrics(configured(root, f"metrics.port={port}")), Severity.ERROR)
    assert f"port {port} on 127.0.0.1 is in use" in found.text
    all_fine(check_metrics(configured(root, f"metrics.port={port}")))


def test_metrics_that_others_can_read(root):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    found = only(check_metrics(configured(root, "metrics.host=0.0.0.0", f"metrics.port={port}")), Severity.WARNING)
    assert "the endpoint has no password" in found.text
    assert "metrics.host=127.0.0.1" in found.remedy


def test_the_host_of_a_judge(root, monkeypatch):
    config = configured(root, JUDGE, *SCORES)
    (finding,) = all_fine(check_hosts(config, lambda host: None))
    assert finding.text == "host names resolve: judge.example"

    def unknown(host: str) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    found = only(check_hosts(config, unknown), Severity.ERROR)
    assert found.text.startswith("reward.functions.judge.kwargs.url: judge.example does not resolve")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert "proxy" in only(check_hosts(config, unknown), Severity.WARNING).remedy
    assert not list(check_hosts(configured(root), unknown))
