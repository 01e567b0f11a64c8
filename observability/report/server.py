"""HTTP server of the report, which rebuilds the page when the run has written new records.

Serves GET of one page. Requests with another Host header are refused, which prevents DNS rebinding.
"""

import hashlib
import threading
from collections.abc import Callable, Hashable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common.errors import InputError
from observability.report.html import content_security_policy

LOCAL = ("127.0.0.1", "localhost", "[::1]")


class CurrentReport:
    """Cache of the page; rebuilds it on request after a change."""

    def __init__(self, make: Callable[[], str], state: Callable[[], Hashable]) -> None:
        """Create the cache. `make` builds the page; `state` returns a value that changes with it."""
        self._make, self._state = make, state
        self._lock = threading.Lock()
        self._known: Hashable = None
        self._page, self._tag = b"", ""

    def page(self) -> tuple[bytes, str]:
        """Return the page and its ETag."""
        with self._lock:
            state = self._state()  # read first: later changes lead to the next page
            if state != self._known or not self._page:
                self._page = self._make().encode()
                self._tag = f'"{hashlib.sha256(repr(state).encode()).hexdigest()[:24]}"'
                self._known = state
            return self._page, self._tag


class ReportServer(ThreadingHTTPServer):
    """HTTP server of one page. A context manager."""

    daemon_threads = True

    def __init__(self, host: str, port: int, current: CurrentReport) -> None:
        """Bind the address; port 0 takes any free port. Raise InputError if it is not available."""
        self.current, self._host = current, host
        try:
            super().__init__((host, port), ReportHandler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--host, --port: cannot listen on {host}:{port}: {error}; choose another host or port"
            ) from error
        self.names = {f"{name}:{self.server_port}" for name in (*LOCAL, host)}

    @property
    def address(self) -> str:
        return f"http://{self._host}:{self.server_port}/"


class ReportHandler(BaseHTTPRequestHandler):
    """Handler of one request."""

    server: ReportServer
    server_version, sys_version = "duet", ""
    timeout = 30

    def do_GET(self) -> None:
        if self.headers.get("Host", "") not in self.server.names:
            self._answer(HTTPStatus.FORBIDDEN, b"The report is not served under this name.\n")
        elif self.path.partition("?")[0] != "/":
            self._answer(HTTPStatus.NOT_FOUND, b"Not found. The report is at /\n")
        else:
            try:
                page, tag = self.server.current.page()
            except InputError as error:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())
                return
            if self.headers.get("If-None-Match") == tag:
                self._answer(HTTPStatus.NOT_MODIFIED, b"", tag=tag)
            else:
                self._answer(HTTPStatus.OK, page, "text/html", tag)

    def _answer(self, status: HTTPStatus, content: bytes, kind: str = "text/plain", tag: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": f"{content_security_policy()}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
            "ETag": tag,
        }
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""
