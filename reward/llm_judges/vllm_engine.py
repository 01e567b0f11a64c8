"""A judge that vLLM serves: from messages to verdicts, a batch at a time. No Ray here.

Two ways to a score. "expected": the judge's answer is begun for it, `{"score": `, and the score is the mean of the
digits that may follow, weighted by their probabilities (G-Eval, Liu et al. 2023, arXiv 2303.16634); small models
tell good from better this way, where what they would write is nearly always the same digit. "answer": it writes a
reason and a score, held to the form, greedily.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from reward.llm_judges import parsing
from reward.llm_judges.parsing import fingerprint
from reward.llm_judges.prompts import Message, rubric_digest
from reward.remote.client import FailureReason, JudgeFailure

MODES = ("expected", "answer")
SOUNDS = 2
"""Of question and reply."""


@dataclass(frozen=True, kw_only=True)
class JudgeEngineSettings:
    """What the engine of a judge is started with. Judges that have these in common share one."""

    checkpoint: str
    listens: bool
    dtype: str
    max_length: int
    """Longest question plus answer, tokens."""
    max_sequences: int
    threads: int
    """CPU threads."""
    kv_cache_gib: float
    """CPU memory for keys and values."""
    gpu_memory_share: float
    tensor_parallel: int
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How a score is got."""

    mode: str
    """One of `MODES`."""
    lowest: float
    highest: float
    opening: str
    """What the judge's answer begins with, in mode expected."""
    sure: float
    """Probability that the digits of the scale must have together, in mode expected."""
    max_tokens: int
    """Of an answer, in mode answer."""
    longest_reason: int
    """Characters, in mode answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    messages: list[Message]
    answering: Answering


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a question."""

    engine: str
    """Version of the engine that gave it."""
    score: object = None
    reason: str = ""
    failure: str = ""
    """Why there is no score; a `FailureReason`."""
    note: str = ""
    usage: Mapping[str, float] = field(default_factory=dict)


class JudgeEngine:
    """A started engine. All of its life belongs to one thread: vLLM keeps state by thread."""

    def __init__(self, settings: JudgeEngineSettings) -> None:
        """Raises InputError for a checkpoint that takes no sound where sound is to be judged."""
        _set_environment(settings)
        import vllm  # after the environment: vLLM reads it on import

        dtype: Any = settings.dtype
        self._llm: Any = vllm.LLM(
            model=settings.checkpoint,
            load_format="safetensors",  # and nothing that is unpickled
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype,
            max_model_len=settings.max_length,
            max_num_seqs=settings.max_sequences,
            tensor_parallel_size=settings.tensor_parallel,
            distributed_executor_backend="mp" if settings.tensor_parallel > 1 else None,
            gpu_memory_utilization=settings.gpu_memory_share,
            enforce_eager=True,  # a judge reads much and writes little
            enable_prefix_caching=True,  # the rubric is the same for all
            logprobs_mode="raw_logprobs",  # over the whole vocabulary, so that it shows whether a digit was coming
            # Where blanks are allowed between the parts of an answer, small models write nothing else.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            limit_mm_per_prompt={"audio": SOUNDS} if settings.listens else None,
        )
        if settings.listens and "audio" not in _takes(self._llm):
            raise InputError(
                f"listens: true, but the model of {settings.checkpoint} takes no sound; listens: false lets it read"
            )
        self._digits: dict[tuple[str, float, float], dict[int, int]] = {}
        made_by = (vllm.__version__, settings.dtype, settings.max_length, settings.listens)
        self.version = f"{fingerprint(Path(settings.checkpoint))}-{rubric_digest(*made_by)[:6]}"
        """Of the weights and of what else decides what they say."""

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each. One that cannot be put to the model is a failure of its own."""
        from vllm.exceptions import VLLMClientError

        try:
            return self._ask(questions)
        except (ValueError, VLLMClientError) as error:  # a prompt that it does not take: too long, for instance
            if len(questions) == 1:
                return [self._failed(FailureReason.REFUSED, " ".join(str(error).split())[:300])]
            return [found for question in questions for found in self.answer([question])]

    def _ask(self, questions: Sequence[Question]) -> list[Verdict]:
        ways = list(dict.fromkeys(question.answering for question in questions))
        found: dict[int, Verdict] = {}
        for way in ways:
            places = [place for place, question in enumerate(questions) if question.answering == way]
            asked = [questions[place].messages for place in places]
            said = self._expect(asked, way) if way.mode == "expected" else self._write(asked, way)
            found |= dict(zip(places, said, strict=True))
        return [found[place] for place in range(len(questions))]

    def _expect(self, asked: list[list[Message]], way: Answering) -> list[Verdict]:
        from vllm import SamplingParams

        digits = self._tokens(way)
        sampling = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(digits), detokenize=False)
        begun = [[*messages, {"role": "assistant", "content": way.opening}] for messages in asked]
        outputs = self._llm.chat(
            begun, sampling, use_tqdm=False, add_generation_prompt=False, continue_final_message=True
        )
        return [self._expected(output, digits, way) for output in outputs]

    def _expected(self, output: Any, digits: Mapping[int, int], way: Answering) -> Verdict:
        """digits: value by token."""
        logps = output.outputs[0].logprobs[0]
        shares = {value: math.exp(logps[token].logprob) for token, value in digits.items()}
        whole = sum(shares.values())
        usage = _usage(output)
        if not whole > 0 or whole < way.sure:
            note = f"the digits of the scale together have probability {whole:.2g}, below sure: {way.sure:g}"
            return self._failed(FailureReason.NOT_UNDERSTOOD, note, usage)
        said = ", ".join(f"{value}: {share / whole:.0%}" for value, share in shares.items())
        score = sum(value * share for value, share in shares.items()) / whole
        # Rounding may carry a mean over the end of the scale.
        score = min(max(score, way.lowest), way.highest)
        return Verdict(engine=self.version, score=score, reason=f"{said} (together {whole:.2g})", usage=usage)

    def _tokens(self, way: Answering) -> dict[int, int]:
        """Value by the token that it is after the opening. Raises ValueError where a digit is no token of its own."""
        key = (way.opening, way.lowest, way.highest)
        if key not in self._digits:
            encode = self._llm.get_tokenizer().encode
            before = encode(way.opening, add_special_tokens=False)
            found = {}
            for value in range(int(way.lowest), int(way.highest) + 1):
                ids = encode(f"{way.opening}{value}", add_special_tokens=False)
                if ids[:-1] != before:
                    raise ValueError(
                        f"the tokenizer has no token {value} after {way.opening!r}; give another opening, or "
                        "score: answer"
                    )
                found[ids[-1]] = value
            self._digits[key] = found
        return self._digits[key]

    def _write(self, asked: list[list[Message]], way: Answering) -> list[Verdict]:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        form = parsing.score_schema(way.lowest, way.highest, max_reason_chars=way.longest_reason, halves=True)
        held = StructuredOutputsParams(json=form)
        sampling = SamplingParams(max_tokens=way.max_tokens, temperature=0.0, structured_outputs=held)
        return [self._written(output) for output in self._llm.chat(asked, sampling, use_tqdm=False)]

    def _written(self, output: Any) -> Verdict:
        usage, answer = _usage(output), output.outputs[0]
        if answer.finish_reason == "length":
            return self._failed(FailureReason.NOT_UNDERSTOOD, "the answer is cut off; raise max_tokens", usage)
        try:
            score, reason = parsing.parse_score(answer.text)
        except JudgeFailure as failure:
            return self._failed(failure.reason, failure.note, usage)
        return Verdict(engine=self.version, score=score, reason=reason, usage=usage)

    def _failed(self, reason: str, note: str, usage: Mapping[str, float] | None = None) -> Verdict:
        return Verdict(engine=self.version, failure=str(reason), note=note, usage=usage or {})


def _usage(output: Any) -> dict[str, float]:
    return {"input_tokens": len(output.prompt_token_ids), "output_tokens": len(output.outputs[0].token_ids)}


def _takes(llm: Any) -> set[str]:
    """What a model takes beside text: "audio", "image", …"""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    if not llm.model_config.is_multimodal_model:
        return set()
    return set(MULTIMODAL_REGISTRY.create_processor(llm.model_config).info.get_supported_mm_limits())


def process_environment(settings: JudgeEngineSettings) -> dict[str, str]:
    """What the process of a judge must be started with."""
    return {"OMP_NUM_THREADS": str(settings.threads), "OPENBLAS_NUM_THREADS": str(settings.threads)}


def _set_environment(settings: JudgeEngineSettings) -> None:
    """Settings that vLLM reads from the environment only."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the actor is the judge's process
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
    # Unset, every engine binds itself to the same cores and starves the others.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
