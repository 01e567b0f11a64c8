"""A judge from a checkpoint on disk: vLLM's OpenAI-compatible server runs it in the cluster for all reward servers.

    reward:
      functions:
        - name: judge
          target: reward.llm_judges.vllm_judge:VllmJudge
          kwargs: {name: judge, checkpoint: /models/judge, rubric: semantic, listens: false, gpus: 1}

Two ways to a score. "expected": the request begins the judge's answer, `{"score": `, and the score is the mean of the
digits that may follow, weighted by their probabilities (G-Eval, Liu et al. 2023, arXiv 2303.16634). Small models
separate good from better this way, where they would nearly always write the same digit. "answer": the judge writes a
reason and a score as JSON, with greedy decoding constrained to a schema.

`listens` says whether the model accepts audio, and is checked. The version holds a hash of all weights and is the name
of the served model, so a server with other weights gives no score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from common.errors import InputError
from reward.llm_judges import parsing
from reward.llm_judges.openai_chat import ChatClient, completion_choice, completion_text, token_usage
from reward.llm_judges.parsing import check_judge
from reward.llm_judges.prompts import JudgePromptConfig, Message, judge_messages
from reward.llm_judges.vllm_server import Endpoint, VllmServerConfig
from reward.llm_judges.vllm_service import ServerPlacement, connect
from reward.remote.client import FailureReason, JudgeAnswer, JudgeFailure, RemoteJudge
from reward.remote.http_judge import ApiKey
from reward.types import SpokenReply

MODES = ("expected", "answer")
DTYPES = ("auto", "float32", "bfloat16", "float16")
COUNTS = {"max_length": 2, "max_sequences": 1, "threads": 1, "tensor_parallel": 1, "max_tokens": 1, "longest_reason": 1}
"""Whole-number settings, each with its minimum."""
AMOUNTS = {"kv_cache_gib": math.inf, "gpu_memory_share": 1.0, "cpus": math.inf, "gpus": math.inf, "sure": 1.0}
"""Settings that are numbers from 0, each with its maximum."""


@dataclass(frozen=True, kw_only=True)
class VllmJudgeConfig(JudgePromptConfig):
    required: ClassVar[tuple[str, ...]] = ("name", "checkpoint", "listens")
    checkpoint: str
    """Folder with a chat model: weights as safetensors, tokenizer, chat template."""
    listens: bool
    """True if the model accepts audio. False: it gets text only."""
    pinned: str = ""
    """Expected engine version, as `duet doctor` shows it between the slashes; any other is refused."""
    score: str = "expected"
    """expected (mean over the digits that may follow `opening`, by their probabilities) or answer (what it writes)."""
    opening: str = '{"score": '
    """Beginning of the judge's answer in mode expected. The tokenizer must encode a digit after it as its own token."""
    sure: float = 0.5
    """Minimum total probability of the scale's digits in mode expected. Below it the model was about to write something
    else, and the score is missing."""
    max_tokens: int = 512
    """Maximum tokens of an answer in mode answer."""
    longest_reason: int = 600
    """Maximum characters of a reason in mode answer."""
    dtype: str = "auto"
    """auto (as the checkpoint), float32, bfloat16 or float16."""
    max_length: int = 8192
    """Maximum tokens of question and answer together."""
    max_sequences: int = 64
    """Maximum number of questions that the engine processes concurrently."""
    cpus: float = 1.0
    """Ray CPUs."""
    gpus: float = 0.0
    """Ray GPUs."""
    resources: dict[str, float] = field(default_factory=dict)
    """Further Ray resources, by the names that nodes were started with."""
    threads: int = 1
    """CPU threads."""
    kv_cache_gib: float = 1.0
    """CPU memory of the KV cache, GiB."""
    gpu_memory_share: float = 0.9
    """Share of the GPU's memory for weights and KV cache."""
    tensor_parallel: int = 1
    """GPUs that share the model."""
    trust_remote_code: bool = False
    """Run code from the checkpoint."""
    start_seconds: float = 240.0
    """Time limit of the server's start. Reward servers wait for it, so `reward.start_timeout_s` must be longer."""
    timeout: float = 120.0
    deadline: float = 300.0
    concurrency: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("checkpoint", "pinned", "opening"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name}: {getattr(self, name)!r} must be text")
        check_judge(Path(self.checkpoint), trust_remote_code=self.trust_remote_code is True)
        for name, allowed in (("score", MODES), ("dtype", DTYPES), ("trust_remote_code", (True, False))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(map(str, allowed))}")
        for name, minimum in COUNTS.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < minimum:
                raise InputError(f"{name}: {getattr(self, name)!r} must be a whole number, at least {minimum}")
        for name, maximum in AMOUNTS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= maximum:
                limit = f", at most {maximum:g}" if maximum < math.inf else ""
                raise InputError(f"{name}: {value!r} must be a number, at least 0{limit}")
        if not 0 < self.start_seconds < math.inf:
            raise InputError(f"start_seconds: {self.start_seconds!r} must be above 0")
        if not isinstance(self.resources, dict):
            raise InputError(f"resources: {self.resources!r} must be a table of names and amounts")
        digits = float(self.lowest).is_integer() and float(self.highest).is_integer() and self.lowest >= 0
        if self.score == "expected" and not (digits and self.highest <= 9):
            raise InputError(
                f"lowest, highest: {self.lowest:g} to {self.highest:g} are not digits, which score: expected needs; "
                "use score: answer"
            )

    @property
    def server(self) -> VllmServerConfig:
        return VllmServerConfig(**{f.name: getattr(self, f.name) for f in fields(VllmServerConfig)})

    @property
    def placement(self) -> ServerPlacement:
        needs = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return ServerPlacement(
            needs={name: amount for name, amount in needs.items() if amount}, start_seconds=self.start_seconds
        )

    @property
    def reason_first(self) -> bool:
        return self.score == "answer"

    def full_version(self, engine: str) -> str:
        """Return the version of prompts, scoring and engine together."""
        scoring = (self.opening, self.sure) if self.score == "expected" else (self.max_tokens, self.longest_reason)
        label = self.version_label(self.score, *scoring, reason_first=self.reason_first)
        return f"{Path(self.checkpoint).name}/{engine}/{label}"


class VllmJudge(RemoteJudge):
    """A rater that asks a vLLM server in the cluster. For its arguments see `VllmJudgeConfig` and its bases."""

    settings: VllmJudgeConfig

    def __init__(self, **arguments: Any) -> None:
        """Wait until the server is up. Raise InputError, TimeoutError, RuntimeError."""
        config = VllmJudgeConfig.from_arguments(arguments)
        self._service = connect(config.server, config.placement)
        engine = self._service.model
        if config.pinned and config.pinned != engine:
            raise InputError(f"pinned: the judge {config.checkpoint} is version {engine!r}, not {config.pinned!r}")
        super().__init__(replace(config, version=config.full_version(engine)))
        self._config, self._instructions = config, config.instructions(reason_first=config.reason_first)
        self._client: tuple[Endpoint, ChatClient] | None = None
        self._digit_tokens: dict[int, int] | None = None

    @staticmethod
    def check(arguments: dict[str, Any]) -> None:
        """Raise InputError for invalid arguments, without starting anything."""
        VllmJudgeConfig.from_arguments(arguments)

    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        messages = judge_messages(self.settings, self._instructions, spoken)
        endpoint, client = await self._connect()
        try:
            if self.settings.score == "expected":
                return await self._ask_expected(client, endpoint.model, messages)
            return await self._ask_answer(client, endpoint.model, messages)
        except JudgeFailure as failure:
            if failure.reason == FailureReason.CONNECTION:  # the server is restarted; the next attempt waits for it
                self._service.mark_lost(endpoint)
            raise

    async def _connect(self) -> tuple[Endpoint, ChatClient]:
        try:
            endpoint = await self._service.endpoint()
        except Exception as error:  # Ray's errors, or the server's at its restart
            note = f"the server is lost and could not be restarted ({type(error).__name__})"
            raise JudgeFailure(FailureReason.CONNECTION, note, retryable=True, down=True) from None
        if self._client is None or self._client[0] != endpoint:
            s = self.settings
            client = ChatClient(
                endpoint.url,
                ApiKey(endpoint.key),
                timeout_s=s.timeout,
                concurrency=s.concurrency,
                use_proxy=False,
                quote_errors=True,
            )
            self._client = endpoint, client
        return self._client

    async def _ask_answer(self, client: ChatClient, model: str, messages: list[Message]) -> JudgeAnswer:
        s = self.settings
        schema = parsing.score_schema(s.lowest, s.highest, max_reason_chars=s.longest_reason, halves=True)
        body = {
            "model": model,
            "messages": messages,
            "max_completion_tokens": s.max_tokens,
            "temperature": 0.0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}},
        }
        answer = await client.complete(body)
        usage = token_usage(answer.get("usage"))
        score, reason = parsing.parse_score(completion_text(answer, usage), usage)
        return JudgeAnswer(score=score, reason=reason, version=self._version_of(answer), usage=usage)

    async def _ask_expected(self, client: ChatClient, model: str, messages: list[Message]) -> JudgeAnswer:
        s, digits = self.settings, await self._digits(client)
        body = {
            "model": model,
            "messages": [*messages, {"role": "assistant", "content": s.opening}],
            "max_completion_tokens": 1,
            "temperature": 0.0,
            "logprobs": True,
        }
        extra = {
            "logprob_token_ids": list(digits),
            "return_tokens_as_token_ids": True,
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
        answer = await client.complete(body, extra)
        usage = token_usage(answer.get("usage"))
        shares = digit_shares(completion_choice(answer, usage), digits, usage)
        total = sum(shares.values())
        if not total > 0 or total < s.sure:
            note = f"the digits of the scale together have probability {total:.2g}, below sure: {s.sure:g}"
            raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, note, usage=usage)
        reason = ", ".join(f"{value}: {share / total:.0%}" for value, share in shares.items())
        score = sum(value * share for value, share in shares.items()) / total
        return JudgeAnswer(
            score=min(max(score, s.lowest), s.highest),  # rounding may carry the mean past the end of the scale
            reason=f"{reason} (together {total:.2g})",
            version=self._version_of(answer),
            usage=usage,
        )

    def _version_of(self, answer: Mapping[str, Any]) -> str:
        return self._config.full_version(str(answer.get("model")))

    async def _digits(self, client: ChatClient) -> dict[int, int]:
        """Return the value of each token that encodes a digit of the scale after the opening."""
        if self._digit_tokens is None:
            s = self.settings
            before = await client.tokenize(s.opening)
            found = {}
            for value in range(int(s.lowest), int(s.highest) + 1):
                ids = await client.tokenize(f"{s.opening}{value}")
                if ids[:-1] != before:
                    note = (
                        f"the tokenizer has no token {value} after {s.opening!r}; give another opening, or "
                        "score: answer"
                    )
                    raise JudgeFailure(FailureReason.REFUSED, note)
                found[ids[-1]] = value
            self._digit_tokens = found
        return self._digit_tokens


def digit_shares(choice: Mapping[str, Any], digits: Mapping[int, int], usage: object) -> dict[int, float]:
    """Return the probability of each value. Raise JudgeFailure if the choice does not have them all."""
    try:
        logprobs = {one["token"]: float(one["logprob"]) for one in choice["logprobs"]["content"][0]["top_logprobs"]}
        return {value: math.exp(logprobs[f"token_id:{token}"]) for token, value in digits.items()}
    except (KeyError, IndexError, TypeError, ValueError):
        note = "the answer has no log-probabilities of the scale's digits"
        raise JudgeFailure(FailureReason.NOT_UNDERSTOOD, note, usage=usage) from None
