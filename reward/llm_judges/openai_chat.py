"""A judge behind an OpenAI-compatible chat interface: hosted models, vLLM's server, and others; many accept audio.

    reward:
      functions:
        - name: judge
          target: reward.llm_judges.openai_chat:ChatJudge
          kwargs: {name: judge, url: 'https://judge.example/v1', model: some-model, api_key_env: JUDGE_KEY,
                      rubric: holistic, sounds: data}

The judge gets a rubric (`prompts.py`), the question as text and, where a fact names its sound file, as audio, and the
reply as text and audio. It answers `{"reason": …, "score": …}`; anything else is a failure. Time limits, retries,
breaker and cache come from `reward.remote.client`; the retries of the openai client are off.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import httpx

from common.errors import InputError
from reward.llm_judges import parsing
from reward.llm_judges.prompts import JudgePromptConfig, Message, judge_messages
from reward.remote.circuit_breaker import retry_after
from reward.remote.client import FailureReason, JudgeAnswer, JudgeFailure, RemoteJudge
from reward.remote.http_judge import KEEPALIVE_S, MAX_BODY_BYTES, RETRYABLE_STATUS, ApiKey, HttpJudgeConfig
from reward.types import SpokenReply

FORMS = ("json_schema", "json_object", "none")
MAX_REASON_CHARS = 600
"""Length limit of the reason in the JSON schema."""
TOKENS_PER_PRICE = 1e6
"""Tokens that a price refers to."""
MAX_ERROR_CHARS = 300
"""Characters kept of a server's error message."""
RESERVED = ("messages", "model", "response_format", "max_completion_tokens", "stream", "n")
"""Request fields that `extra` must not set."""


@dataclass(frozen=True, kw_only=True)
class ChatJudgeConfig(JudgePromptConfig, HttpJudgeConfig):
    required: ClassVar[tuple[str, ...]] = ("name", "url", "model")
    url: str
    """Base URL up to /v1, without user name and password; the key comes from the environment."""
    model: str
    """Model name of the service."""
    served: str = ""
    """Model name that answers must carry, for services where `model` is an alias of the newest one. Answers of another
    model are failures. Empty: any."""
    form: str = "json_schema"
    """Response format of the request: json_schema, json_object, or none for services that support neither."""
    temperature: float | None = 0.0
    """None: not sent, for models that reject it."""
    max_tokens: int = 1024
    """Maximum tokens of an answer, including reasoning tokens; a truncated answer is a failure."""
    input_price: float | None = None
    """Price of a million tokens, in any currency. With `output_price`, costs are counted. A cost reported by the
    service (`usage.cost`) takes precedence."""
    output_price: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Further request fields, such as {seed: 1}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "served"):
            if not isinstance(getattr(self, name), str) or (name == "model" and not self.model):
                raise InputError(f"{name}: {getattr(self, name)!r} must be text")
        if self.form not in FORMS:
            raise InputError(f"form: {self.form!r} is unknown; allowed: {', '.join(FORMS)}")
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            raise InputError(f"max_tokens: {self.max_tokens!r} must be a whole number, at least 1")
        for name in ("temperature", "input_price", "output_price"):
            value = getattr(self, name)
            valid = not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < float("inf")
            if value is not None and not valid:
                raise InputError(f"{name}: {value!r} must be a number, at least 0, or none")
        if (self.input_price is None) != (self.output_price is None):
            raise InputError("input_price, output_price: one alone gives no cost; give both or neither")
        if not isinstance(self.extra, Mapping) or any(name in RESERVED for name in self.extra):
            raise InputError(f"extra: must be a table of further fields, none of {', '.join(RESERVED)}")
        try:
            json.dumps(dict(self.extra), allow_nan=False)
        except (TypeError, ValueError):
            raise InputError("extra: holds a value that JSON cannot represent") from None

    def with_full_version(self) -> "ChatJudgeConfig":
        """Return a copy whose version covers everything that may change an answer, including the address."""
        sampling = [self.url, self.model, self.form, self.temperature, self.max_tokens, dict(self.extra)]
        return replace(self, version=f"{self.served or self.model}-{self.version_label(*sampling, reason_first=True)}")


class ChatJudge(RemoteJudge):
    """A rater that asks a chat model. For its arguments see `ChatJudgeConfig` and its bases."""

    settings: ChatJudgeConfig

    def __init__(self, **arguments: Any) -> None:
        """Read the key. Raise InputError."""
        config = ChatJudgeConfig.from_arguments(arguments)
        if importlib.util.find_spec("openai") is None:
            raise InputError("reward.llm_judges.openai_chat needs the package openai, which is not installed")
        super().__init__(config.with_full_version())
        self._instructions = config.instructions(reason_first=True)
        self._key = ApiKey.from_environment(config.api_key_env) if config.api_key_env else None
        s = self.settings
        self._client = ChatClient(
            s.url, self._key, timeout_s=s.timeout, concurrency=s.concurrency, use_proxy=not s.local
        )

    @staticmethod
    def check(arguments: dict[str, Any]) -> None:
        """Raise InputError for invalid arguments. The key is not read: it may exist only on the reward servers."""
        ChatJudgeConfig.from_arguments(arguments)

    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        s = self.settings
        answer = await self._client.complete(self._body(judge_messages(s, self._instructions, spoken)), s.extra)
        usage, served = token_usage(answer.get("usage"), s.input_price, s.output_price), answer.get("model")
        content = completion_text(answer, usage)
        if s.served and served != s.served:
            note = f"the answer is from {self._redact(str(served))[:80]!r}, not {s.served!r}"
            raise JudgeFailure(FailureReason.OTHER_VERSION, note, usage=usage)
        score, reason = parsing.parse_score(content, usage)
        return JudgeAnswer(score=score, reason=self._redact(reason), usage=usage)

    def _body(self, messages: list[Message]) -> dict[str, Any]:
        s = self.settings
        body: dict[str, Any] = {"model": s.model, "messages": messages, "max_completion_tokens": s.max_tokens}
        if s.temperature is not None:
            body["temperature"] = s.temperature
        if s.form == "json_schema":
            form = {
                "name": "verdict",
                "strict": True,
                "schema": parsing.score_schema(s.lowest, s.highest, max_reason_chars=MAX_REASON_CHARS),
            }
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif s.form == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _redact(self, text: str) -> str:
        return self._key.redact(text) if self._key is not None else text


class ChatClient:
    """Client of an OpenAI-compatible server: one request per call, without retries of its own."""

    def __init__(
        self,
        url: str,
        key: ApiKey | None,
        *,
        timeout_s: float,
        concurrency: int,
        use_proxy: bool,
        quote_errors: bool = False,
    ) -> None:
        """Create a client without connecting.

        Args:
            url: Base URL up to /v1.
            concurrency: Maximum number of connections.
            use_proxy: Use the proxy and certificates from the environment.
            quote_errors: Add the server's message to the note of a refusal. It may quote the request.
        """
        self._url, self._key, self._quote_errors = url, key, quote_errors
        self._timeout_s, self._concurrency, self._use_proxy = timeout_s, concurrency, use_proxy
        self._openai: Any = None
        self._http: Any = None

    async def complete(self, body: dict[str, Any], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a chat completion request and return the body of the answer. Raise JudgeFailure.

        Args:
            extra: Request fields outside OpenAI's interface.
        """
        import openai

        # Organization and project from the environment are meant for OpenAI; this may be another service.
        # No compression: a few bytes must not expand to many.
        headers: dict[str, Any] = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        headers["Accept-Encoding"] = "identity"
        if self._key is None:
            headers["Authorization"] = openai.omit
        create = self._connect().chat.completions.with_streaming_response.create
        try:
            async with create(**body, extra_body=dict(extra or {}), extra_headers=headers) as response:
                content = b""
                async for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_BODY_BYTES:
                        raise JudgeFailure(
                            FailureReason.NOT_UNDERSTOOD, f"the answer is longer than {MAX_BODY_BYTES} bytes"
                        )
        except (openai.APITimeoutError, httpx.TimeoutException):
            raise JudgeFailure(FailureReason.TIMEOUT, "no answer in time", retryable=True, down=True) from None
        except (openai.APIConnectionError, httpx.HTTPError) as error:  # its message may quote the request
            raise JudgeFailure(FailureReason.CONNECTION, type(error).__name__, retryable=True, down=True) from None
        except openai.APIStatusError as error:
            message = " ".join(str(error).split())[:MAX_ERROR_CHARS] if self._quote_errors else ""
            raise _status_failure(error.status_code, error.response.headers.get("Retry-After"), message) from None
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the answer, {len(content)} bytes, is not JSON") from None
        if not isinstance(answer, dict):
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, "the answer is not a JSON object")
        return answer

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens, from a vLLM server. Raise JudgeFailure."""
        self._connect()
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key.reveal()}"}
        body = {"prompt": text, "add_special_tokens": False}
        try:
            response = await self._http.post(f"{self._url.removesuffix('/v1')}/tokenize", json=body, headers=headers)
            response.raise_for_status()
            return list(response.json()["tokens"])
        except httpx.HTTPStatusError as error:
            raise _status_failure(error.response.status_code, None) from None
        except httpx.HTTPError as error:
            raise JudgeFailure(FailureReason.CONNECTION, type(error).__name__, retryable=True, down=True) from None
        except (ValueError, KeyError, TypeError):
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, "the answer to /tokenize has no tokens") from None

    def _connect(self) -> Any:  # openai.AsyncOpenAI, imported on first use
        if self._openai is None:
            import openai

            self._http = httpx.AsyncClient(
                timeout=self._timeout_s,
                limits=httpx.Limits(
                    max_connections=self._concurrency,
                    max_keepalive_connections=self._concurrency,
                    keepalive_expiry=KEEPALIVE_S,
                ),
                trust_env=self._use_proxy,
                follow_redirects=False,
            )
            self._openai = openai.AsyncOpenAI(
                api_key=self._key.reveal() if self._key is not None else "none",  # without one it reads the environment
                base_url=self._url,
                max_retries=0,
                timeout=self._timeout_s,
                http_client=self._http,
            )
        return self._openai


def token_usage(
    reported: object, input_price: float | None = None, output_price: float | None = None
) -> dict[str, object]:
    """Return tokens and cost of an answer under the names of `USAGE`, without unknown ones."""
    if not isinstance(reported, Mapping):
        return {}
    prompt, completion, cost = (reported.get(name) for name in ("prompt_tokens", "completion_tokens", "cost"))
    counted = type(prompt) is int and type(completion) is int
    if cost is None and counted and input_price is not None and output_price is not None:
        cost = (prompt * input_price + completion * output_price) / TOKENS_PER_PRICE
    usage = {"input_tokens": prompt, "output_tokens": completion, "cost": cost}
    return {name: number for name, number in usage.items() if number is not None}


def completion_choice(answer: Mapping[str, Any], usage: object) -> dict[str, Any]:
    """Return the first choice of a chat completion. Raise JudgeFailure if there is none."""
    try:
        choice = answer["choices"][0]
        choice["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        note = "the answer is not a chat completion: it has no choices with a message"
        raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, note, usage=usage) from None
    return choice


def completion_text(answer: Mapping[str, Any], usage: object) -> object:
    """Return the text of a chat completion. Raise JudgeFailure for a refusal and for a truncated answer."""
    choice = completion_choice(answer, usage)
    message, finish = choice["message"], choice.get("finish_reason")
    if message.get("refusal") or finish == "content_filter":
        raise JudgeFailure(FailureReason.REFUSED, "the model refuses to judge this reply", usage=usage)
    if finish == "length":
        raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, "the answer is cut off; raise max_tokens", usage=usage)
    return message.get("content")


def _status_failure(status: int, retry_after_header: str | None, message: str = "") -> JudgeFailure:
    """Return the failure for an HTTP error status. message: the server's own, for people."""
    note = f"HTTP {status}" + (f": {message}" if message else "")
    if status in RETRYABLE_STATUS or status >= 500:
        reason = FailureReason.LIMITED if status == 429 else FailureReason.SERVER
        retry_after_s = retry_after(retry_after_header, datetime.now(UTC))
        return JudgeFailure(reason, note, retryable=True, down=status >= 500, retry_after_s=retry_after_s)
    return JudgeFailure(FailureReason.REFUSED, note)
