"""Where a worker serves what vLLM counts in it, for Prometheus to scrape.

vLLM keeps its metrics in the process that calls it, also when its core runs in another one: what the core says of
itself comes with the tokens. A thread of the worker answers scrapes; the engine does not notice.
"""

from dataclasses import dataclass
from ipaddress import ip_address

ANYWHERE = ("0.0.0.0", "::", "")
"""Hosts that stand for every address of a machine."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Where to listen, and what to call it."""

    bind: str
    told: str
    """Host under which others find it; empty: whatever they call the controller's machine."""


def bind_port(host: str, node: str, home: str) -> Listener | None:
    """Where a worker on `node` serves its metrics, by `metrics.host`, which is the controller's at `home`.

    Nothing opens to a network unless that was asked for: with a local host, only a worker on the controller's own
    machine can be scraped, and others serve nothing. node, home: addresses of their machines.
    """
    here = node == home
    if is_local(host) and not here:
        return None
    bind = host if here or host in ANYWHERE else node
    return Listener(bind=bind, told="" if here else node)


def is_local(host: str) -> bool:
    """Whether a host is this machine as nobody else can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve_metrics(where: Listener | None) -> str | None:
    """Serves what vLLM counts in this process, on any free port. Returns "host:port", the host as `told`; None where
    there is no door."""
    if where is None:
        return None
    from prometheus_client import disable_created_metrics, start_http_server
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    disable_created_metrics()  # a series beside every counter and histogram, which nothing asks for
    server, _ = start_http_server(0, where.bind, get_prometheus_registry())
    # Always the plain text format: for OpenMetrics, which Prometheus would rather have, prometheus-client writes an
    # underscore for the colon in vLLM's names.
    answer = server.get_app()
    server.set_app(lambda environ, respond: answer({**environ, "HTTP_ACCEPT": "text/plain"}, respond))
    return metrics_address(where.told, server.server_port)


def metrics_address(host: str, port: int) -> str:
    """host:port, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
