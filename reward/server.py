"""The reward server: a Ray actor that decodes replies and runs the raters on them.

`score_replies` needs no Ray: it runs local raters one after another while remote judges work in parallel.
`reward.pool` manages many servers.
"""

import math
import numbers
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from cluster.monitored_actor import MonitoredActor
from common.errors import InputError
from reward.decoder_pool import DecodeFailed, DecoderConfig, decode_audio, fetch_audio
from reward.remote.cache import merge_answers
from reward.remote.client import RemoteJudge
from reward.types import MissingScore, Rater, RaterOutput, Score, Scorecard, SpokenReply
from speech.acoustics import measures
from speech.audio import Waveform
from speech.families import Family
from speech.registry import ClassSpec, build_codec, load_object
from speech.types import Finish, Reply, ReplyGroup
from speech.vocabulary import Vocabulary

HEARD = "heard"
"""Detail under which a rater notes the words it heard; the word error against the text is computed from it."""


def reply_defect(reply: Reply) -> MissingScore | None:
    """Return why a reply must stay unscored (truncated, aborted or malformed; method §7, rule 5), or None."""
    if reply.finish == Finish.LENGTH:
        return MissingScore("truncated reply")
    if reply.finish == Finish.ABORTED:
        return MissingScore("aborted reply")
    if reply.defect is not None:
        return MissingScore("malformed reply")
    return None


def score_replies(raters: Sequence[Rater], spoken: Sequence[SpokenReply], timeout_s: float) -> list[Scorecard]:
    """Return a scorecard per reply.

    A rater that raises, or returns anything but a finite number, gives MissingScore (method §7, rule 1).

    Args:
        timeout_s: Time limit passed to batch raters.
    """
    defects = [reply_defect(reply.reply) for reply in spoken]
    intact = [reply for reply, defect in zip(spoken, defects, strict=True) if defect is None]
    outputs = iter(_rate(raters, intact, timeout_s))
    return [
        _scorecard(reply, {rater.name: RaterOutput(score=defect) for rater in raters} if defect else next(outputs))
        for reply, defect in zip(spoken, defects, strict=True)
    ]


def _scorecard(spoken: SpokenReply, outputs: Mapping[str, RaterOutput]) -> Scorecard:
    details = {"text": spoken.text}
    for output in outputs.values():
        details |= _storable_details(output.details)
    intact = spoken.waveform if reply_defect(spoken.reply) is None else None
    return Scorecard(
        scores={name: output.score for name, output in outputs.items()},
        details=details,
        seconds=spoken.waveform.seconds if spoken.waveform else 0.0,
        measures=measures(intact, spoken.text, details.get(HEARD)) if intact is not None else {},
    )


def _rate(raters: Sequence[Rater], spoken: Sequence[SpokenReply], timeout_s: float) -> list[dict[str, RaterOutput]]:
    """Return the outputs for each reply, by rater name, in the order of the raters."""
    remote = [rater for rater in raters if hasattr(rater, "rate_all")]
    local = [rater for rater in raters if not hasattr(rater, "rate_all")]
    if not spoken:
        return []
    with ThreadPoolExecutor(max(1, len(remote)), thread_name_prefix="judge") as threads:
        pending = {rater.name: threads.submit(_rate_batch, rater, spoken, timeout_s) for rater in remote}
        # Reply by reply: local raters may share intermediate results of a reply, such as the words heard.
        outputs = [{rater.name: _rate_one(rater, reply) for rater in local} for reply in spoken]
        for name, batch in pending.items():
            for reply_outputs, output in zip(outputs, batch.result(), strict=True):
                reply_outputs[name] = output
    return [{rater.name: reply_outputs[rater.name] for rater in raters} for reply_outputs in outputs]


def _rate_one(rater: Rater, spoken: SpokenReply) -> RaterOutput:
    try:
        score = _check_score(rater.name, rater.rate(spoken))
        return RaterOutput(score=score, details=rater.detail(spoken) if hasattr(rater, "detail") else {})
    except Exception as error:  # a rater may raise anything; its score is missing and the run continues
        missing = MissingScore(f"{rater.name} raised {type(error).__name__}", fault="rater")
        return RaterOutput(score=missing, details={f"{rater.name}_error": str(error)})


def _rate_batch(rater: Rater, spoken: Sequence[SpokenReply], timeout_s: float) -> list[RaterOutput]:
    try:
        outputs = rater.rate_all(spoken, timeout_s)  # type: ignore[attr-defined]  # only batch raters get here
        if len(outputs) != len(spoken):
            raise ValueError(f"{len(outputs)} answers to {len(spoken)} replies")
    except Exception as error:  # the message is dropped: it may contain a judge's key
        return [
            RaterOutput(score=MissingScore(f"{rater.name} raised {type(error).__name__}", fault="rater"))
            for _ in spoken
        ]
    return [RaterOutput(score=_check_score(rater.name, output.score), details=output.details) for output in outputs]


def _check_score(name: str, score: object) -> Score:
    """Return a finite number or MissingScore. Anything else is a failure of the rater."""
    if isinstance(score, MissingScore):
        valid = isinstance(score.reason, str) and score.fault in ("reply", "rater")
        return score if valid else MissingScore(f"{name} gave no reason", fault="rater")
    try:
        # bool is a number in Python, but not a score.
        if not isinstance(score, bool) and isinstance(score, numbers.Real) and math.isfinite(score):
            return float(score)
    except (OverflowError, ValueError, TypeError):
        pass  # larger than any float
    return MissingScore(f"{name} gave no finite number", fault="rater")


def _storable_details(details: Mapping) -> dict[str, str]:
    """Return a rater's notes as valid UTF-8: a judge's answer may contain lone surrogates."""
    return {str(key): str(value).encode(errors="replace").decode() for key, value in details.items()}


def sum_counters(counters: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Add up the counters per rater of several servers."""
    total: dict[str, dict[str, float]] = {}
    for by_rater in counters:
        for name, counted in by_rater.items():
            rater_total = total.setdefault(name, {})
            for counter, number in counted.items():
                rater_total[counter] = rater_total.get(counter, 0) + number
    return total


JUDGES_SHARE = 0.8
"""Share of a batch's deadline that judges get; those without an answer by then are not waited for."""


@dataclass(frozen=True, kw_only=True)
class RewardServerConfig:
    servers: int
    needs: Mapping[str, float]
    """Ray resources of each server."""
    checkpoint: str
    """Source of the tokenizer."""
    codec: ClassSpec
    """Built through `codec.load(path)`."""
    raters: tuple[ClassSpec, ...]
    start_seconds: float
    score_seconds: float
    """Time limit for scoring a batch."""
    beat_seconds: float
    """Heartbeat timeout of a server."""
    decoders: DecoderConfig | None = None
    """Decoder actors; None: each server decodes in its own process."""


class RewardServer(MonitoredActor):
    """Score groups of replies. A rater that raises gives MissingScore, never a number (method §7, rule 1)."""

    def __init__(self, settings: RewardServerConfig, family: Family, answers: pa.Table | None = None) -> None:
        """answers: cached answers of remote raters to start with."""
        super().__init__()
        self._timeout_s = settings.score_seconds
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._codec = None if settings.decoders else build_codec(settings.codec.target, settings.codec.kwargs)
        self._raters: list[Rater] = [spec.build() for spec in settings.raters]
        for spec, rater in zip(settings.raters, self._raters, strict=True):
            if spec.name and spec.name != rater.name:
                raise InputError(f"reward.functions: {spec.target} calls its score {rater.name!r}, not {spec.name!r}")
        self._started_at = time.time()
        if answers is not None:
            self.load_cache(answers)

    def versions(self) -> dict[str, str]:
        """Return the versions of the raters, and of the codec if this server holds one."""
        versions = {rater.name: rater.version for rater in self._raters}
        return versions if self._codec is None else versions | {"codec": self._codec.version}

    def score(
        self, groups: list[ReplyGroup], audio_refs: list[ray.ObjectRef | None] | None = None
    ) -> list[list[Scorecard | DecodeFailed]]:
        """Return a scorecard per reply, by group.

        Args:
            audio_refs: With decoders, the audio of all replies, flattened in the order of the groups.
        """
        deadline = time.monotonic() + JUDGES_SHARE * self._timeout_s
        replies = [(group.prompt, reply) for group in groups for reply in group.replies]
        audio = (
            self.decode([reply.token_ids for _, reply in replies]) if audio_refs is None else fetch_audio(audio_refs)
        )
        spoken = [
            SpokenReply(prompt=prompt, reply=reply, text=self._vocabulary.text(reply.token_ids), waveform=waveform)
            for (prompt, reply), waveform in zip(replies, audio, strict=True)
            if not isinstance(waveform, DecodeFailed)
        ]
        cards = iter(score_replies(self._raters, spoken, deadline - time.monotonic()))
        results = iter([waveform if isinstance(waveform, DecodeFailed) else next(cards) for waveform in audio])
        return [[next(results) for _ in group.replies] for group in groups]

    def rate(self, spoken: list[SpokenReply], raters: list[str]) -> list[Scorecard]:
        """Return a scorecard per decoded reply, from the named raters only."""
        selected = [rater for rater in self._raters if rater.name in raters]
        return score_replies(selected, spoken, JUDGES_SHARE * self._timeout_s)

    def cache_entries(self) -> pa.Table:
        """Return the cached answers of remote raters, with the schema `reward.remote.cache.ANSWERS`."""
        return merge_answers(rater.cache.table() for rater in self._raters if hasattr(rater, "cache"))

    def load_cache(self, answers: pa.Table) -> int:
        """Add answers to the caches of remote raters. Return the number of rows given."""
        for rater in self._raters:
            if hasattr(rater, "cache"):
                rater.cache.load(answers)
        return answers.num_rows

    def counters(self) -> tuple[float, dict[str, dict[str, float]], dict[str, bool]]:
        """Return the start time of this server and, per remote rater, its `JudgeCounters` and whether its circuit is
        open."""
        judges = [rater for rater in self._raters if isinstance(rater, RemoteJudge)]
        return self._started_at, {j.name: j.counters() for j in judges}, {j.name: j.circuit_open for j in judges}

    def decode(self, replies: list[np.ndarray]) -> list[Waveform | None]:
        """Return the waveform of the speech tokens among the ids [T] of each reply; None without speech tokens."""
        assert self._codec is not None, "the codec is in the decoder actors"
        return [decode_audio(ids, self._vocabulary, self._codec) for ids in replies]

    def measure(self, function: str, waveforms: list[Waveform]) -> list[float]:
        """Apply a function of a waveform, named "module:function", to each waveform."""
        measure = load_object(function)
        return [float(measure(waveform)) for waveform in waveforms]
