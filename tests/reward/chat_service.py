"""A stub of OpenAI's chat service in a thread, with good, slow and wrong answers."""

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from reward.llm_judges.openai_chat import ChatJudge

USAGE = {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320}
GOOD = {"reason": "clear and right", "score": 4.5}


def completion(content: object, **others: Any) -> dict[str, Any]:
    """Return a chat completion. others: fields of the answer, the choice (finish_reason) or the message (refusal)."""
    message = {"role": "assistant", "content": content, "refusal": others.pop("refusal", None)}
    choice = {"index": 0, "message": message, "finish_reason": others.pop("finish_reason", "stop")}
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "judge-2026", "choices": [choice]}
    return answer | {"usage": USAGE} | others


def said(content: object, **others: Any) -> bytes:
    return json.dumps(completion(content, **others)).encode()


WAYS: dict[str, tuple[int, bytes]] = {
    "well": (200, said(json.dumps(GOOD))),
    "words": (200, said("I would give this reply a 4.")),
    "fenced": (200, said(f"```json\n{json.dumps(GOOD)}\n```")),
    "fields": (200, said('{"reason": "good", "rating": 4}')),
    "more": (200, said('{"reason": "good", "score": 4, "score_of_sound": 2}')),
    "twice": (200, said('{"reason": "good", "score": 4, "score": 2}')),
    "unreasoned": (200, said('{"score": 4, "reason": null}')),
    "empty": (200, said(None)),
    "text": (200, said('{"reason": "good", "score": "4"}')),
    "true": (200, said('{"reason": "good", "score": true}')),
    "nan": (200, said('{"reason": "good", "score": NaN}')),
    "high": (200, said('{"reason": "good", "score": 5.5}')),
    "low": (200, said('{"reason": "bad", "score": 0}')),
    "endless": (200, said('{"reason": "good", "score": Infinity}')),
    "refusal": (200, said(None, refusal="I cannot judge voices.")),
    "filtered": (200, said("", finish_reason="content_filter")),
    "cut": (200, said('{"reason": "It is', finish_reason="length")),
    "choiceless": (200, json.dumps({"id": "c", "usage": USAGE}).encode()),
    "list": (200, b"[4]"),
    "html": (200, b"<html>Welcome</html>"),
    "flood": (200, said(json.dumps(GOOD | {"reason": "x" * 100_000}))),
    "other": (200, said(json.dumps(GOOD), model="judge-2025")),
    "key": (401, b'{"error": {"message": "Incorrect API key provided"}}'),
    "field": (400, b'{"error": {"message": "unknown field"}}'),
    "nowhere": (404, b"not found"),
    "busy": (429, b'{"error": {"message": "slow down"}}'),
    "fault": (500, b'{"error": {"message": "oops"}}'),
    "away": (503, b""),
}
"""Status and body by behaviour. Further behaviours: slow (waits), drop (closes the connection), broken (closes it in
the body)."""


class Service:
    """Serve on a free port. `ways`: behaviour per request, in order; the last one repeats."""

    def __init__(self, slow: float = 20.0) -> None:
        self.ways: list[str] = ["well"]
        self.asked: list[dict[str, Any]] = []
        """Bodies, each with the request's headers as "headers" and its time as "at"."""
        self.wait: str | None = None
        """Retry-After of refusals."""
        self._slow, self._over, self._lock = slow, threading.Event(), threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def does(self, ways: Iterable[str]) -> None:
        self.ways, self.asked, self.wait = list(ways), [], None

    def end(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def rater(self, **changes: Any) -> ChatJudge:
        """Return a rater of this service with short pauses."""
        usual = {"name": "judge", "url": self.url, "model": "judge", "timeout": 20, "deadline": 60, "retries": 1}
        usual |= {"first_pause": 0.01, "breaker_failures": 1000, "input_price": 2.0, "output_price": 8.0}
        return ChatJudge(**usual | changes)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._lock:
            self.asked.append(body | {"headers": headers, "path": request.path, "at": time.monotonic()})
            way = self.ways.pop(0) if len(self.ways) > 1 else self.ways[0]
        if way == "slow":
            self._over.wait(self._slow)
        if way in ("slow", "drop"):
            request.close_connection = True
            return
        status, content = WAYS["well" if way == "broken" else way]
        request.send_response(status)
        request.send_header("Content-Type", "text/html" if way == "html" else "application/json")
        request.send_header("Content-Length", str(len(content)))
        if self.wait is not None and status != 200:
            request.send_header("Retry-After", self.wait)
        request.end_headers()
        with suppress(OSError):  # the client has closed the connection
            request.wfile.write(content[:40] if way == "broken" else content)
        if way == "broken":
            request.close_connection = True
