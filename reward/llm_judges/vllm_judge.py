"""A judge of one's own, from a checkpoint on disk: vLLM serves it in the cluster, and all reward servers share it.

    reward:
      functions:
        - name: judge
          target: reward.llm_judges.vllm_judge:LocalRater
          kwargs: {name: judge, checkpoint: /models/judge, rubric: semantic, listens: false, gpus: 1}

Whether the model takes sound must be said (`listens`), and is checked. The version holds a hash of all of the
checkpoint's weights, and every answer says which engine gave it: a judge that was changed meanwhile gives no score.
"""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from common.errors import InputError
from reward.llm_judges.parsing import check_judge
from reward.llm_judges.prompts import JudgePromptConfig, judge_messages
from reward.llm_judges.vllm_engine import MODES, Answering, JudgeEngineSettings, Question
from reward.llm_judges.vllm_service import Room, reach
from reward.remote.client import JudgeAnswer, JudgeFailure, RemoteJudge
from reward.types import SpokenReply

DTYPES = ("auto", "float32", "bfloat16", "float16")
COUNTS = {"max_length": 2, "max_sequences": 1, "threads": 1, "tensor_parallel": 1, "max_tokens": 1, "longest_reason": 1}
"""Settings that are whole numbers, each with the least."""
AMOUNTS = {"kv_cache_gib": math.inf, "gpu_memory_share": 1.0, "cpus": math.inf, "gpus": math.inf, "sure": 1.0}
"""Settings that are numbers from 0 on, each with the most."""


@dataclass(frozen=True, kw_only=True)
class LocalSettings(JudgePromptConfig):
    needed: ClassVar[tuple[str, ...]] = ("name", "checkpoint", "listens")
    checkpoint: str
    """A folder with a chat model: weights as safetensors, tokenizer, chat template."""
    listens: bool
    """Whether the model takes sound. False: it gets the words only."""
    pinned: str = ""
    """Version of the engine that is expected, as `duet doctor` shows it between the slashes; another is refused."""
    score: str = "expected"
    """expected (mean over the digits that may follow `opening`, by their probabilities) or answer (what it writes)."""
    opening: str = '{"score": '
    """In mode expected, what the judge's answer is begun with; its tokenizer must write a digit after it as a token of
    its own."""
    sure: float = 0.5
    """In mode expected, the probability that the digits of the scale must have together: a model that was about to
    write something else gives no score."""
    max_tokens: int = 512
    """Of an answer, in mode answer."""
    longest_reason: int = 600
    """Characters of a reason, in mode answer."""
    dtype: str = "auto"
    """auto (as the checkpoint), float32, bfloat16 or float16."""
    max_length: int = 8192
    """Longest question plus answer, tokens."""
    max_sequences: int = 64
    """Questions that are answered at once."""
    cpus: float = 1.0
    """Ray CPUs."""
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    """Further resources of Ray, by the names that nodes were started with."""
    threads: int = 1
    """CPU threads."""
    kv_cache_gib: float = 1.0
    """CPU memory for keys and values."""
    gpu_memory_share: float = 0.9
    tensor_parallel: int = 1
    trust_remote_code: bool = False
    start_seconds: float = 240.0
    """For the judge to be up; a reward server waits for it, so `reward.start_timeout_s` must be longer."""
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
        for name, least in COUNTS.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)!r} must be a whole number, at least {least}")
        for name, most in AMOUNTS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise InputError(f"{name}: {value!r} must be a number, at least 0" + f", at most {most:g}" * (most < 9))
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
    def engine(self) -> JudgeEngineSettings:
        return JudgeEngineSettings(**{f.name: getattr(self, f.name) for f in fields(JudgeEngineSettings)})

    @property
    def room(self) -> Room:
        needs = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return Room(needs={what: much for what, much in needs.items() if much}, start_seconds=self.start_seconds)

    @property
    def answering(self) -> Answering:
        same = {f.name: getattr(self, f.name) for f in fields(Answering) if f.name != "mode"}
        return Answering(mode=self.score, **same)

    @property
    def reason_first(self) -> bool:
        return self.score == "answer"

    def version_with(self, engine: str) -> str:
        """The whole version, of what is asked and of the engine that answers."""
        a = self.answering
        way = (a.opening, a.sure) if a.mode == "expected" else (a.max_tokens, a.longest_reason)
        asked = self.label(a.mode, *way, reason_first=self.reason_first)
        return f"{Path(self.checkpoint).name}/{engine}/{asked}"


class LocalRater(RemoteJudge):
    """Rates by asking a model in the cluster. For its arguments see `LocalSettings` and its bases."""

    settings: LocalSettings

    def __init__(self, **arguments: Any) -> None:
        """Waits until the judge is up. Raises InputError, TimeoutError, RuntimeError."""
        asked = LocalSettings.of(arguments)
        self._judge = reach(asked.engine, asked.room)
        engine = self._judge.version
        if asked.pinned and asked.pinned != engine:
            raise InputError(f"pinned: the judge {asked.checkpoint} is version {engine!r}, not {asked.pinned!r}")
        super().__init__(replace(asked, version=asked.version_with(engine)))
        self._asked, self._told = asked, asked.told(reason_first=asked.reason_first)

    @staticmethod
    def check(arguments: dict[str, Any]) -> None:
        """Raises InputError for arguments that will not do, without starting anything."""
        LocalSettings.of(arguments)

    async def ask(self, spoken: SpokenReply) -> JudgeAnswer:
        s = self.settings
        question = Question(messages=judge_messages(s, self._told, spoken), answering=s.answering)
        found = await self._judge.judge(question, s.timeout)
        version = self._asked.version_with(found.engine)
        if found.failure:
            raise JudgeFailure(found.failure, found.note, usage=found.usage)
        return JudgeAnswer(score=found.score, reason=found.reason, version=version, usage=found.usage)
