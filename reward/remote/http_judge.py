"""A judge behind HTTP: a JSON object goes there, a JSON object with a score comes back.

    reward:
      functions:
        - name: judge
          target: reward.remote.http_judge:HttpJudge
          kwargs:
            {name: judge, version: my-judge-1, url: 'https://judge.example/rate', api_key_env: JUDGE_KEY}

    →  {"rater": name, "version": …, "prompt": {"id": …, "text": …, "facts": {…}},
        "reply": {"text": …, "audio": WAV in base64 or null}}
    ←  {"score": 4.5, "reason": "clear and right", "version": "my-judge-1",
        "usage": {"input_tokens": 310, "output_tokens": 12, "cost": 0.0004}}    all but the score may be left out

httpx does the talking: it comes with transformers in any case, bounds its connections, and reads proxies and
certificates from where everybody looks for them.
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

LONGEST_ANSWER = 65536
"""Bytes of a body that are read."""
IDLE_SECONDS = 5.0
"""How long a connection is kept for the next question: shorter than most servers do."""
KEY_NAMES = ("key", "api_key", "apikey", "api-key", "token", "access_token")
"""Parts of an address that hold a key, which would end up in configurations and logs."""
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
MAY_GET_BETTER = (408, 425, 429)
"""Client errors that are worth another attempt, as server errors are."""


class ApiKey:
    """A key that cannot be printed, logged or pickled by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key stays in the process that read it")

    def reveal(self) -> str:
        return self._value

    def struck_from(self, text: str) -> str:
        """The text without the key, which a server may have echoed."""
        return text.replace(self._value, "[key]")

    @classmethod
    def from_environment(cls, variable: str) -> "ApiKey":
        """Raises InputError, without the value, when there is none or it cannot be sent."""
        value = os.environ.get(variable, "").strip()
        if not value:
            raise InputError(f"api_key_env: the variable {variable} is not set where the reward server runs")
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise InputError(f"api_key_env: what is in {variable} is no key; expected printable ASCII without blanks")
        return cls(value)


@dataclass(frozen=True, kw_only=True)
class HttpJudgeConfig(RemoteJudgeConfig):
    needed: ClassVar[tuple[str, ...]] = ("name", "version", "url")
    url: str
    """http:// or https://. Without name and password: a key comes from the environment."""
    api_key_env: str = ""
    """Environment variable of the reward servers, in capital letters, with the key that is sent as
    `Authorization: Bearer …`; empty: none is sent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("url", "api_key_env"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name}: expected text, got a value of type {type(getattr(self, name)).__name__}")
        try:
            parts = urlsplit(self.url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if not whole:
            raise InputError("url: expected an address such as https://judge.example/rate")
        if parts.username is not None or parts.password is not None:
            raise InputError("url: holds a name or a password; put the key into a variable and name it in api_key_env")
        for name, _ in parse_qsl(parts.query):
            if name.lower() in KEY_NAMES:
                raise InputError(f"url: holds {name!r}; put the key into a variable and name it in api_key_env")
        # Not echoed: whoever writes the key itself here must not find it in a log.
        if self.api_key_env and not VARIABLE.fullmatch(self.api_key_env):
            raise InputError("api_key_env: expected the name of an environment variable, such as JUDGE_KEY")

    @property
    def local(self) -> bool:
        """Whether it is on this machine, where no proxy leads to."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")


class HttpJudge(RemoteJudge):
    """Rates by asking a server. For its arguments see `HttpJudgeConfig` and `RemoteJudgeConfig`."""

    settings: HttpJudgeConfig

    def __init__(self, **arguments: Any) -> None:
        """Reads the key. Raises InputError."""
        super().__init__(HttpJudgeConfig.of(arguments))
        variable = self.settings.api_key_env
        self._key = ApiKey.from_environment(variable) if variable else None
        self._client: httpx.AsyncClient | None = None

    @staticmethod
    def check(arguments: dict[str, Any]) -> None:
        """Raises InputError for arguments that will not do, without reading the key: it need not be here."""
        HttpJudgeConfig.of(arguments)

    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        status, after, body = await self._post(self._question(spoken))
        if status in MAY_GET_BETTER or status >= 500:
            reason = FailureReason.LIMITED if status == 429 else FailureReason.SERVER
            raise JudgeFailure(reason, f"HTTP {status}", again=True, down=status >= 500, after=after)
        if not 200 <= status < 300:
            raise JudgeFailure(FailureReason.REFUSED, f"HTTP {status}")
        if len(body) > LONGEST_ANSWER:
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the answer is longer than {LONGEST_ANSWER} bytes")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the answer, {len(body)} bytes, is not JSON") from None
        if not isinstance(answer, dict) or "score" not in answer:
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, "the answer is not a JSON object with a score")
        words, version = (self._without_key(answer.get(name)) for name in ("reason", "version"))
        return JudgeAnswer(score=answer["score"], reason=words, version=version, usage=answer.get("usage"))

    def _without_key(self, value: object) -> object:
        return self._key.struck_from(value) if self._key is not None and isinstance(value, str) else value

    def _question(self, spoken: SpokenReply) -> bytes:
        s, prompt = self.settings, spoken.prompt
        sound = encode_wav(spoken.waveform) if s.listens and spoken.waveform is not None else None
        question = {
            "rater": s.name,
            "version": s.version,
            "prompt": {"id": prompt.id, "text": prompt.text, "facts": prompt.facts},
            "reply": {"text": spoken.text, "audio": sound and base64.b64encode(sound).decode()},
        }
        return json.dumps(question).encode()

    async def _post(self, question: bytes) -> tuple[int, float | None, bytes]:
        """Status, seconds asked to wait, and as much of the body as may be read. Raises Failure."""
        # Uncompressed, so that a few bytes cannot become many.
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.reveal()}"
        try:
            async with self._connected().stream("POST", self.settings.url, content=question, headers=headers) as answer:
                body = b""
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > LONGEST_ANSWER:
                        break
                after = retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
                return answer.status_code, after, body
        except httpx.TimeoutException:
            raise JudgeFailure(FailureReason.TIMEOUT, "no answer in time", again=True, down=True) from None
        except httpx.HTTPError as error:  # its text may quote what was sent
            raise JudgeFailure(FailureReason.CONNECTION, type(error).__name__, again=True, down=True) from None

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            s = self.settings
            self._client = httpx.AsyncClient(
                timeout=s.timeout,
                limits=httpx.Limits(
                    max_connections=s.concurrency,
                    max_keepalive_connections=s.concurrency,
                    keepalive_expiry=IDLE_SECONDS,
                ),
                trust_env=not s.local,
                follow_redirects=False,
            )
        return self._client


def encode_wav(waveform: Waveform) -> bytes:
    """The sound as a WAV file, 16-bit PCM."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform.samples, -1.0, 1.0), waveform.rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
