"""A judge behind a chat interface as OpenAI's, many of which take sound: hosted models, vLLM's own server, and others.

    reward:
      functions:
        - name: judge
          target: reward.llm_judges.openai_chat:ChatJudge
          kwargs: {name: judge, url: 'https://judge.example/v1', model: some-model, api_key_env: JUDGE_KEY,
                      rubric: holistic, sounds: data}

It gets a rubric (`rubrics.py`), the question in words and, where a fact names its sound file, in sound, and the reply
in words and sound. It answers `{"reason": …, "score": …}`; anything else is no score. Time limits, retries, breaker and
cache are those of every remote rater (`reward.remote.client`): the client's own retries are off.
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
from reward.remote.http_judge import IDLE_SECONDS, LONGEST_ANSWER, MAY_GET_BETTER, ApiKey, HttpJudgeConfig
from reward.types import SpokenReply

FORMS = ("json_schema", "json_object", "none")
LONGEST_REASON = 600
"""Characters of a reason that a judge held to a schema may write."""
PER = 1e6
"""Tokens that a price is for."""
OURS = ("messages", "model", "response_format", "max_completion_tokens", "stream", "n")
"""Fields of a request that are not for `extra`."""


@dataclass(frozen=True, kw_only=True)
class ChatJudgeConfig(JudgePromptConfig, HttpJudgeConfig):
    needed: ClassVar[tuple[str, ...]] = ("name", "url", "model")
    url: str
    """Of the interface, up to /v1. Without name and password: a key comes from the environment."""
    model: str
    """As the service calls it."""
    served: str = ""
    """What answers must say that they come from, where `model` is a name for whatever is newest; an answer of another
    is none. Empty: any."""
    form: str = "json_schema"
    """How the service is asked for JSON: json_schema, json_object, or none, for those that know neither."""
    temperature: float | None = 0.0
    """None: not sent, for models that refuse it."""
    max_tokens: int = 1024
    """Of an answer, thinking included where a model thinks; one that is cut off is no score."""
    input_price: float | None = None
    """For a million tokens, in any currency; with `output_price` what an answer cost is counted. A service that says
    the cost itself (`usage.cost`) is believed."""
    output_price: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of a request, such as {seed: 1}."""

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
            good = not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < float("inf")
            if value is not None and not good:
                raise InputError(f"{name}: {value!r} must be a number, at least 0, or none")
        if (self.input_price is None) != (self.output_price is None):
            raise InputError("input_price, output_price: one alone gives no cost; give both or neither")
        if not isinstance(self.extra, Mapping) or any(name in OURS for name in self.extra):
            raise InputError(f"extra: must be a table of further fields, none of {', '.join(OURS)}")
        try:
            json.dumps(dict(self.extra), allow_nan=False)
        except (TypeError, ValueError):
            raise InputError("extra: holds what JSON cannot") from None

    def pinned(self) -> "ChatJudgeConfig":
        """The same with the whole version: another one for whatever may change an answer, the address included."""
        sampling = [self.url, self.model, self.form, self.temperature, self.max_tokens, dict(self.extra)]
        return replace(self, version=f"{self.served or self.model}-{self.label(*sampling, reason_first=True)}")


class ChatJudge(RemoteJudge):
    """Rates by asking a chat model. For its arguments see `ChatJudgeConfig` and its bases."""

    settings: ChatJudgeConfig

    def __init__(self, **arguments: Any) -> None:
        """Reads the key. Raises InputError."""
        asked = ChatJudgeConfig.of(arguments)
        if importlib.util.find_spec("openai") is None:
            raise InputError("reward.llm_judges.openai_chat needs the package openai, which is not installed")
        super().__init__(asked.pinned())
        self._told = asked.told(reason_first=True)
        self._key = ApiKey.from_environment(asked.api_key_env) if asked.api_key_env else None
        self._client: Any = None

    @staticmethod
    def check(arguments: dict[str, Any]) -> None:
        """Raises InputError for arguments that will not do, without reading the key: it need not be here."""
        ChatJudgeConfig.of(arguments)

    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        answer = await self._post(judge_messages(self.settings, self._told, spoken))
        usage, served = self._usage(answer.get("usage")), answer.get("model")
        content = _content(answer, usage)
        if self.settings.served and served != self.settings.served:
            says = self._without_key(str(served))[:80]
            raise JudgeFailure(
                FailureReason.OTHER_VERSION, f"the answer is from {says!r}, not {self.settings.served!r}", usage=usage
            )
        score, reason = parsing.parse_score(content, usage)
        return JudgeAnswer(score=score, reason=self._without_key(reason), usage=usage)

    async def _post(self, asked: list[Message]) -> dict[str, Any]:
        """The body of the answer. Raises Failure."""
        import openai

        s = self.settings
        body: dict[str, Any] = {"model": s.model, "messages": asked, "max_completion_tokens": s.max_tokens}
        if s.temperature is not None:
            body["temperature"] = s.temperature
        if s.form == "json_schema":
            form = {
                "name": "verdict",
                "strict": True,
                "schema": parsing.score_schema(s.lowest, s.highest, longest=LONGEST_REASON),
            }
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif s.form == "json_object":
            body["response_format"] = {"type": "json_object"}
        # What the client takes from the environment is for OpenAI, and this may be somebody else. Uncompressed, so that
        # a few bytes cannot become many.
        headers: dict[str, Any] = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        headers["Accept-Encoding"] = "identity"
        if self._key is None:
            headers["Authorization"] = openai.omit
        create = self._connected().chat.completions.with_streaming_response.create
        try:
            async with create(**body, extra_body=dict(s.extra), extra_headers=headers) as answer:
                content = b""
                async for part in answer.iter_bytes():
                    content += part
                    if len(content) > LONGEST_ANSWER:
                        raise JudgeFailure(
                            FailureReason.NOT_UNDERSTOOD, f"the answer is longer than {LONGEST_ANSWER} bytes"
                        )
        except (openai.APITimeoutError, httpx.TimeoutException):
            raise JudgeFailure(FailureReason.TIMEOUT, "no answer in time", again=True, down=True) from None
        except (openai.APIConnectionError, httpx.HTTPError) as error:  # its text may quote what was sent
            raise JudgeFailure(FailureReason.CONNECTION, type(error).__name__, again=True, down=True) from None
        except openai.APIStatusError as error:
            raise _refused(error.status_code, error.response.headers.get("Retry-After")) from None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, f"the answer, {len(content)} bytes, is not JSON") from None
        if not isinstance(found, dict):
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, "the answer is not a JSON object")
        return found

    def _usage(self, told: object) -> dict[str, object]:
        """Tokens and cost of an answer, by our names; without what is not known."""
        if not isinstance(told, Mapping):
            return {}
        read, wrote, cost = (told.get(name) for name in ("prompt_tokens", "completion_tokens", "cost"))
        into, out = self.settings.input_price, self.settings.output_price
        if cost is None and type(read) is int and type(wrote) is int and into is not None and out is not None:
            cost = (read * into + wrote * out) / PER
        usage = {"input_tokens": read, "output_tokens": wrote, "cost": cost}
        return {name: number for name, number in usage.items() if number is not None}

    def _without_key(self, words: str) -> str:
        return self._key.struck_from(words) if self._key is not None else words

    def _connected(self) -> Any:  # openai.AsyncOpenAI, imported where a judge is asked
        if self._client is None:
            import openai

            s = self.settings
            http: Any = httpx.AsyncClient(  # releases of the client differ in which httpx they are typed for
                timeout=s.timeout,
                limits=httpx.Limits(
                    max_connections=s.concurrency,
                    max_keepalive_connections=s.concurrency,
                    keepalive_expiry=IDLE_SECONDS,
                ),
                trust_env=not s.local,
                follow_redirects=False,
            )
            self._client = openai.AsyncOpenAI(
                api_key=self._key.reveal() if self._key is not None else "none",  # without one it would look for one
                base_url=s.url,
                max_retries=0,
                timeout=s.timeout,
                http_client=http,
            )
        return self._client


def _refused(status: int, wait: str | None) -> JudgeFailure:
    """What an HTTP status that is no success means."""
    if status in MAY_GET_BETTER or status >= 500:
        reason = FailureReason.LIMITED if status == 429 else FailureReason.SERVER
        after = retry_after(wait, datetime.now(UTC))
        return JudgeFailure(reason, f"HTTP {status}", again=True, down=status >= 500, after=after)
    return JudgeFailure(FailureReason.REFUSED, f"HTTP {status}")


def _content(answer: dict[str, Any], usage: object) -> object:
    """What the model wrote. Raises Failure for an answer of another shape, a refusal, and one that is cut off."""
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        refusal, content = message.get("refusal"), message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        note = "the answer has no choices with a message, as a chat completion has"
        raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, note, usage=usage) from None
    if refusal or finish == "content_filter":
        raise JudgeFailure(FailureReason.REFUSED, "the model refuses to judge this reply", usage=usage)
    if finish == "length":
        raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, "the answer is cut off; raise max_tokens", usage=usage)
    return content
