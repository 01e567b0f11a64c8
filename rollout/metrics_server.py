"""Serves the vLLM metrics of a worker to Prometheus.

vLLM keeps its metrics in the calling process, even if its core runs in another one: the core sends its counts with the
tokens. A thread of the worker answers scrapes, without calls to the engine.
"""

from dataclasses import dataclass
from ipaddress import ip_address

ANYWHERE = ("0.0.0.0", "::", "")
"""Hosts that mean every address of a machine."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Address to bind and host to advertise."""

    bind: str
    advertised: str
    """Host for Prometheus; empty: the name by which it knows the controller's machine."""


def bind_port(host: str, node: str, home: str) -> Listener | None:
    """Return where a worker serves its metrics. None: the worker serves none.

    No port opens to a network by default: with a loopback host, workers on other machines than the controller's serve
    no metrics.

    Args:
        host: `metrics.host` of the configuration.
        node: IP address of the worker's machine.
        home: IP address of the controller's machine.
    """
    here = node == home
    if is_local(host) and not here:
        return None
    bind = host if here or host in ANYWHERE else node
    return Listener(bind=bind, advertised="" if here else node)


def is_local(host: str) -> bool:
    """Return True for a loopback host, which other machines cannot reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve_metrics(listener: Listener | None) -> str | None:
    """Serve this process's vLLM metrics on a free port. Return "host:port" with the advertised host, or None without a
    listener."""
    if listener is None:
        return None
    from prometheus_client import disable_created_metrics, start_http_server
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    disable_created_metrics()  # unused extra series of every counter and histogram
    server, _ = start_http_server(0, listener.bind, get_prometheus_registry())
    # Always the plain text format: in OpenMetrics, which Prometheus prefers, prometheus-client replaces the colon in
    # vLLM's names by an underscore.
    app = server.get_app()
    server.set_app(lambda environ, respond: app({**environ, "HTTP_ACCEPT": "text/plain"}, respond))
    return metrics_address(listener.advertised, server.server_port)


def metrics_address(host: str, port: int) -> str:
    """Return "host:port", with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
