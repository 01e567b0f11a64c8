"""ASGI middleware of a judge's vLLM server: every path but /health needs the key.

vLLM's own check covers /v1 and a few other prefixes only: /invocations, which generates, and /tokenize are open.
The server loads it by name (`--middleware`); it imports the standard library only.
"""

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

OPEN_PATHS = ("/health",)


class RequireKey:
    """Answer 401 to requests without `Authorization: Bearer $VLLM_API_KEY`."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})

    def _has_key(self, scope: dict[str, Any]) -> bool:
        given = dict(scope.get("headers", [])).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)
