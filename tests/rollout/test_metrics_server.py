"""Where a worker serves its metrics: nothing opens to a network unless that was asked for."""

import urllib.request

import pytest
from prometheus_client import Counter

from rollout.metrics_server import Listener, bind_port, metrics_address, serve_metrics

HOME, AWAY = "10.0.0.1", "10.0.0.2"


@pytest.mark.parametrize(
    ("host", "node", "found"),
    [
        ("127.0.0.1", HOME, Listener(bind="127.0.0.1", advertised="")),
        ("localhost", HOME, Listener(bind="localhost", advertised="")),
        ("::1", HOME, Listener(bind="::1", advertised="")),
        ("127.0.0.1", AWAY, None),
        ("localhost", AWAY, None),
        ("0.0.0.0", HOME, Listener(bind="0.0.0.0", advertised="")),
        ("0.0.0.0", AWAY, Listener(bind="0.0.0.0", advertised=AWAY)),
        # The controller's own address is none of the other machine.
        (HOME, HOME, Listener(bind=HOME, advertised="")),
        (HOME, AWAY, Listener(bind=AWAY, advertised=AWAY)),
        ("head.cluster", AWAY, Listener(bind=AWAY, advertised=AWAY)),
    ],
)
def test_a_worker_serves_where_the_controller_does(host, node, found):
    assert bind_port(host, node, HOME) == found


def test_an_ipv6_address_is_bracketed():
    assert metrics_address("fe80::2", 9) == "[fe80::2]:9"
    assert metrics_address("10.0.0.2", 9) == "10.0.0.2:9"


def test_names_keep_their_colons_whatever_a_scraper_would_rather_have():
    """Dashboards ask for vllm:…, as vLLM documents it."""
    Counter("vllm:made_up_tokens", "Of this test.").inc(3)
    request = urllib.request.Request(
        f"http://{serve_metrics(Listener(bind='127.0.0.1', advertised='127.0.0.1'))}/metrics",
        headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert "\nvllm:made_up_tokens_total 3.0\n" in answer.read().decode()
