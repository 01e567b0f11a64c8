"""A judge behind HTTP: it gets a JSON object and answers with a JSON object that holds a score.

    reward:
      functions:
        - name: judge
          target: reward.remote.http_judge:HttpJudge
          kwargs:
            {name: judge, version: my-judge-1, url: 'https://judge.example/rate', api_key_env: JUDGE_KEY}

    →  {"rater": name, "version": …, "prompt": {"id": …, "text": …, "facts": {…}},
        "reply": {"text": …, "audio": WAV in base64 or null}}
    ←  {"score": 4.5, "reason": "clear and right", "version": "my-judge-1",
        "usage": {"input_tokens": 310, "output_tokens": 12, "cost": 0.0004}}    only the score is required

The HTTP client is httpx: transformers installs it anyway, it limits connections, and it reads proxies and certificates
from the usual environment variables.
"""

import base64
import io
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, NoReturn
from urllib.parse import parse_qsl, urlsplit

import httpx
import numpy as np

from common.errors import InputError
from reward.remote.circuit_breaker import retry_after
from reward.remote.client import FailureReason, JudgeAnswer, JudgeFailure, RemoteJudge, RemoteJudgeConfig
from reward.types import SpokenReply
from speech.audio import Waveform

MAX_BODY_BYTES = 65536
"""Bytes of a response body that are read."""
KEEPALIVE_S = 5.0
"""Keep-alive time of an idle connection, shorter than that of most servers."""
KEY_NAMES = ("key", "api_key", "apikey", "api-key", "token", "access_token")
"""Query parameters that hold a key, which would end up in configurations and logs."""
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
RETRYABLE_STATUS = (408, 425, 429)
"""Client errors that are retried, besides all server errors."""


class ApiKey:
    """An API key that cannot be printed, logged or pickled by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key cannot be pickled; read it from the environment in each process")

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        """Return the text without the key, which a server may have echoed."""
        return text.replace(self._value, "[key]")

    @classmethod
    def from_environment(cls, variable: str) -> "ApiKey":
        """Read the key. Raise InputError, without the value, if it is missing or not a valid header value."""
        value = os.environ.get(variable, "").strip()
        if not value:
            raise InputError(f"api_key_env: the variable {variable} is not set where the reward server runs")
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise InputError(f"api_key_env: {variable} holds an invalid key; expected printable ASCII without blanks")
        return cls(value)


@dataclass(frozen=True, kw_only=True)
class HttpJudgeConfig(RemoteJudgeConfig):
    required: ClassVar[tuple[str, ...]] = ("name", "version", "url")
    url: str
    """http:// or https:// address without user name and password; the key comes from the environment."""
    api_key_env: str = ""
    """Environment variable of the reward servers, in capital letters, that holds the key. It is sent as
    `Authorization: Bearer …`; empty: no key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("url", "api_key_env"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name}: expected text, got a value of type {type(getattr(self, name)).__name__}")
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise InputError("url: expected an address such as https://judge.example/rate")
        if parts.username is not None or parts.password is not None:
            raise InputError("url: holds a name or a password; put the key into a variable and name it in api_key_env")
        for name, _ in parse_qsl(parts.query):
            if name.lower() in KEY_NAMES:
                raise InputError(f"url: holds {name!r}; put the key into a variable and name it in api_key_env")
        # Do not echo the value: it may be the key itself, which must not reach a log.
        if self.api_key_env and not VARIABLE.fullmatch(self.api_key_env):
            raise InputError("api_key_env: expected the name of an environment variable, such as JUDGE_KEY")

    @property
    def local(self) -> bool:
        """True if the judge is on this machine, which needs no proxy."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")


class HttpJudge(RemoteJudge):
    """A rater that asks an HTTP server. For its arguments see `HttpJudgeConfig` and `RemoteJudgeConfig`."""

    settings: HttpJudgeConfig

    def __init__(self, **arguments: Any) -> None:
        """Read the key. Raise InputError."""
        super().__init__(HttpJudgeConfig.from_arguments(arguments))
        variable = self.settings.api_key_env
        self._key = ApiKey.from_environment(variable) if variable else None
        self._client: httpx.AsyncClient | None = None

    @staticmethod
    def check(arguments: dict[str, Any]) -> None:
        """Raise InputError for invalid arguments. The key is not read: it may exist only on the reward servers."""
        HttpJudgeConfig.from_arguments(arguments)

    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        status, retry_after_s, body = await self._post(self._question(spoken))
        if status in RETRYABLE_STATUS or status >= 500:
            reason = FailureReason.LIMITED if status == 429 else FailureReason.SERVER
            raise JudgeFailure(
                reason, f"HTTP {status}", retryable=True, down=status >= 500, retry_after_s=retry_after_s
            )
        if not 200 <= status < 300:
            raise JudgeFailure(FailureReason.REFUSED, f"HTTP {status}")
        if len(body) > MAX_BODY_BYTES:
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the answer is longer than {MAX_BODY_BYTES} bytes")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the answer, {len(body)} bytes, is not JSON") from None
        if not isinstance(answer, dict) or "score" not in answer:
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, "the answer is not a JSON object with a score")
        explanation, version = (self._redact(answer.get(name)) for name in ("reason", "version"))
        return JudgeAnswer(score=answer["score"], reason=explanation, version=version, usage=answer.get("usage"))

    def _redact(self, value: object) -> object:
        return self._key.redact(value) if self._key is not None and isinstance(value, str) else value

    def _question(self, spoken: SpokenReply) -> bytes:
        s, prompt = self.settings, spoken.prompt
        audio = encode_wav(spoken.waveform) if s.listens and spoken.waveform is not None else None
        question = {
            "rater": s.name,
            "version": s.version,
            "prompt": {"id": prompt.id, "text": prompt.text, "facts": prompt.facts},
            "reply": {"text": spoken.text, "audio": audio and base64.b64encode(audio).decode()},
        }
        return json.dumps(question).encode()

    async def _post(self, question: bytes) -> tuple[int, float | None, bytes]:
        """Return status, Retry-After in seconds, and the body up to the limit. Raise JudgeFailure."""
        # No compression: a few bytes must not expand to many.
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.reveal()}"
        try:
            async with self._connect().stream("POST", self.settings.url, content=question, headers=headers) as response:
                body = b""
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        break
                retry_after_s = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
                return response.status_code, retry_after_s, body
        except httpx.TimeoutException:
            raise JudgeFailure(FailureReason.TIMEOUT, "no answer in time", retryable=True, down=True) from None
        except httpx.HTTPError as error:  # its message may quote the request
            raise JudgeFailure(FailureReason.CONNECTION, type(error).__name__, retryable=True, down=True) from None

    def _connect(self) -> httpx.AsyncClient:
        if self._client is None:
            s = self.settings
            self._client = httpx.AsyncClient(
                timeout=s.timeout,
                limits=httpx.Limits(
                    max_connections=s.concurrency,
                    max_keepalive_connections=s.concurrency,
                    keepalive_expiry=KEEPALIVE_S,
                ),
                trust_env=not s.local,
                follow_redirects=False,
            )
        return self._client


def encode_wav(waveform: Waveform) -> bytes:
    """Encode audio as a WAV file, 16-bit PCM."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform.samples, -1.0, 1.0), waveform.rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
