"""Serves the metrics of a run, and says where those of its members are, for a Prometheus server to scrape.

    GET /metrics    the controller's own: `observability.metrics.registry`, and memory and processor time of its process
    GET /targets    the controller and every rollout worker that is up, for Prometheus' HTTP service discovery

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
    """Answers scrapes from threads of its own."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """port: 0 takes any free port; `port` tells which after `start`."""
        self.host, self.port = host, port
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self, numbers: MetricsCollector, run: str, members: Callable[[], Mapping[str, str]]) -> None:
        """Begins to serve. Raises InputError when the address cannot be had.

        run: its name. members: where members serve metrics, "host:port" by name, no host where it is this machine.
        """
        self._serve(_Application(numbers, run, members, lambda: self.port))

    def probe(self) -> None:
        """Raises InputError when the address cannot be had."""
        self._serve(lambda environ, respond: [])
        self.close()

    def _serve(self, application: Callable) -> None:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, *_, (at, *_) = found[0]
            kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
            self._server = make_server(str(at), self.port, application, kind, handler_class=_Silent)
        except socket.gaierror as error:
            raise InputError(f"metrics.host: no address is known for {self.host!r}: {error.strerror}") from error
        except OSError as error:
            raise InputError(self._refusal(error)) from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving and frees the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def _refusal(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return (
                f"metrics.port: port {self.port} on {self.host} is in use; set metrics.port to another, "
                "or to 0 for any free one"
            )
        if error.errno == errno.EADDRNOTAVAIL:
            return f"metrics.host: {self.host} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all"
        return f"metrics.port: cannot listen on port {self.port} of {self.host}: {error.strerror}"


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a line every few seconds says nothing."""


class _Application:
    """The two answers, as WSGI, and what they cost."""

    def __init__(
        self, numbers: MetricsCollector, run: str, members: Callable[[], Mapping[str, str]], port: Callable[[], int]
    ) -> None:
        registry = CollectorRegistry()
        registry.register(numbers)
        ProcessCollector(registry=registry)
        self._metrics = make_wsgi_app(registry)
        self._numbers, self._run, self._members, self._port = numbers, run, members, port

    def __call__(self, environ: dict[str, Any], respond: Callable) -> Iterable[bytes]:
        with self._numbers.spending(time.thread_time):
            if environ["PATH_INFO"] != "/targets":
                return self._metrics(environ, respond)
            found = scrape_targets(self._run, self._members(), environ.get("HTTP_HOST", ""), self._port())
            respond("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(found).encode()]


def scrape_targets(run: str, members: Mapping[str, str], asked: str, port: int) -> list[dict[str, Any]]:
    """What can be scraped, in the form of Prometheus' HTTP service discovery. Pure.

    asked: "host:port" that the question came to. Whoever found the controller under that host finds what is on its
    machine there too. A member that is started again somewhere else stays the same `instance`: its series go on.
    """
    host = urlsplit(f"//{asked}").hostname or "127.0.0.1"
    found = {"controller": metrics_address(host, port)}
    for name, at in members.items():
        found[name] = metrics_address(host, int(at[1:])) if at.startswith(":") else at
    return [{"targets": [at], "labels": {"run": run, "instance": name}} for name, at in found.items()]
