"""Serve the metrics of a run and the scrape targets of its actors.

    GET /metrics    metrics of the controller (`observability.metrics.registry`), memory and CPU time of its process
    GET /targets    addresses of the controller and all running rollout workers, for Prometheus' HTTP service discovery

https://prometheus.io/docs/prometheus/latest/http_sd/
"""

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from common.errors import InputError
from observability.metrics.collector import MetricsCollector
from rollout.metrics_server import metrics_address


class MetricsServer:
    """HTTP server for scrapes, in its own threads."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Create the server. Port 0 takes any free port; `port` holds it after `start`."""
        self.host, self.port = host, port
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self, numbers: MetricsCollector, run: str, workers: Callable[[], Mapping[str, str]]) -> None:
        """Start serving. Raise InputError if the address is not available.

        Args:
            run: name of the run.
            workers: addresses of the workers' metrics by name: "host:port", or ":port" on this machine.
        """
        self._serve(_Application(numbers, run, workers, lambda: self.port))

    def probe(self) -> None:
        """Raise InputError if the address is not available."""
        self._serve(lambda environ, respond: [])
        self.close()

    def _serve(self, application: Callable) -> None:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, *_, (at, *_) = found[0]
            kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
            self._server = make_server(str(at), self.port, application, kind, handler_class=_Silent)
        except socket.gaierror as error:
            raise InputError(f"metrics.host: cannot resolve {self.host!r}: {error.strerror}") from error
        except OSError as error:
            raise InputError(self._refusal(error)) from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def _refusal(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return (
                f"metrics.port: port {self.port} on {self.host} is in use; choose another port, "
                "or to 0 for any free one"
            )
        if error.errno == errno.EADDRNOTAVAIL:
            return (
                f"metrics.host: {self.host} is not an address of this machine; use 127.0.0.1, "
                "or 0.0.0.0 for all interfaces"
            )
        return f"metrics.port: cannot listen on port {self.port} of {self.host}: {error.strerror}"


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: scrapes come every few seconds."""


class _Application:
    """WSGI application of the two paths. Records its own cost."""

    def __init__(
        self, numbers: MetricsCollector, run: str, workers: Callable[[], Mapping[str, str]], port: Callable[[], int]
    ) -> None:
        registry = CollectorRegistry()
        registry.register(numbers)
        ProcessCollector(registry=registry)
        self._metrics = make_wsgi_app(registry)
        self._numbers, self._run, self._workers, self._port = numbers, run, workers, port

    def __call__(self, environ: dict[str, Any], respond: Callable) -> Iterable[bytes]:
        with self._numbers.spending(time.thread_time):
            if environ["PATH_INFO"] != "/targets":
                return self._metrics(environ, respond)
            found = scrape_targets(self._run, self._workers(), environ.get("HTTP_HOST", ""), self._port())
            respond("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(found).encode()]


def scrape_targets(run: str, workers: Mapping[str, str], requested: str, port: int) -> list[dict[str, Any]]:
    """Return the scrape targets in the format of Prometheus' HTTP service discovery. Pure.

    A worker that restarts on another machine keeps its `instance`, and so its series.

    Args:
        requested: "host:port" of the request. Workers on the controller's machine are listed under this host.
    """
    host = urlsplit(f"//{requested}").hostname or "127.0.0.1"
    found = {"controller": metrics_address(host, port)}
    for name, at in workers.items():
        found[name] = metrics_address(host, int(at[1:])) if at.startswith(":") else at
    return [{"targets": [at], "labels": {"run": run, "instance": name}} for name, at in found.items()]
