"""Asks the raters about replies: those of this process one after another, judges elsewhere meanwhile. No Ray.

A reward server: the Ray actor that decodes replies and asks the raters. `reward.pool` has many of them.
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
from reward.decoder_pool import DecodeFailed, DecoderConfig, audio_of, fetch_audio
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
"""The detail under which a rater notes the words that it heard; they are compared with the text."""


def reply_defect(reply: Reply) -> MissingScore | None:
    """Why a reply is not scored like a finished one (method §7, rule 5): truncated or malformed replies stay
    unscored."""
    if reply.finish == Finish.LENGTH:
        return MissingScore("truncated reply")
    if reply.finish == Finish.ABORTED:
        return MissingScore("aborted reply")
    if reply.defect is not None:
        return MissingScore("malformed reply")
    return None


def score_replies(raters: Sequence[Rater], spoken: Sequence[SpokenReply], seconds: float) -> list[Scorecard]:
    """A card for each reply. seconds: what batch raters get. A rater that raises, or gives what is no finite number,
    gives Missing (method §7, rule 1)."""
    reasons = [reply_defect(one.reply) for one in spoken]
    fit = [one for one, reason in zip(spoken, reasons, strict=True) if reason is None]
    rated = iter(_rate(raters, fit, seconds))
    return [
        _card(one, {rater.name: RaterOutput(score=reason) for rater in raters} if reason else next(rated))
        for one, reason in zip(spoken, reasons, strict=True)
    ]


def _card(spoken: SpokenReply, rated: Mapping[str, RaterOutput]) -> Scorecard:
    details = {"text": spoken.text}
    for one in rated.values():
        details |= _words(one.details)
    whole = spoken.waveform if reply_defect(spoken.reply) is None else None
    return Scorecard(
        scores={name: one.score for name, one in rated.items()},
        details=details,
        seconds=spoken.waveform.seconds if spoken.waveform else 0.0,
        measures=measures(whole, spoken.text, details.get(HEARD)) if whole is not None else {},
    )


def _rate(raters: Sequence[Rater], spoken: Sequence[SpokenReply], seconds: float) -> list[dict[str, RaterOutput]]:
    """What each rater says of each reply, by name, in the order of the raters."""
    elsewhere = [rater for rater in raters if hasattr(rater, "rate_all")]
    here = [rater for rater in raters if not hasattr(rater, "rate_all")]
    if not spoken:
        return []
    with ThreadPoolExecutor(max(1, len(elsewhere)), thread_name_prefix="judge") as threads:
        asked = {rater.name: threads.submit(_batch, rater, spoken, seconds) for rater in elsewhere}
        # Reply by reply: raters of one process may share what they heard of it.
        found = [{rater.name: _one(rater, reply) for rater in here} for reply in spoken]
        for name, answers in asked.items():
            for of_reply, rated in zip(found, answers.result(), strict=True):
                of_reply[name] = rated
    return [{rater.name: of_reply[rater.name] for rater in raters} for of_reply in found]


def _one(rater: Rater, spoken: SpokenReply) -> RaterOutput:
    try:
        score = _checked(rater.name, rater.rate(spoken))
        return RaterOutput(score=score, details=rater.detail(spoken) if hasattr(rater, "detail") else {})
    except Exception as error:  # whatever a rater raises, its score is missing and the run goes on
        missing = MissingScore(f"{rater.name} raised {type(error).__name__}", fault="rater")
        return RaterOutput(score=missing, details={f"{rater.name}_error": str(error)})


def _batch(rater: Rater, spoken: Sequence[SpokenReply], seconds: float) -> list[RaterOutput]:
    try:
        rated = rater.rate_all(spoken, seconds)  # type: ignore[attr-defined]  # of those that rate a batch
        if len(rated) != len(spoken):
            raise ValueError(f"{len(rated)} answers to {len(spoken)} replies")
    except Exception as error:  # its words are not kept: a judge has a key to tell
        return [
            RaterOutput(score=MissingScore(f"{rater.name} raised {type(error).__name__}", fault="rater"))
            for _ in spoken
        ]
    return [RaterOutput(score=_checked(rater.name, one.score), details=one.details) for one in rated]


def _checked(name: str, score: object) -> Score:
    """What a rater gave: a finite number or Missing. Anything else is a failure of the rater."""
    if isinstance(score, MissingScore):
        sound = isinstance(score.reason, str) and score.fault in ("reply", "rater")
        return score if sound else MissingScore(f"{name} gave no reason", fault="rater")
    try:
        # A truth value is no score, whatever Python makes of it.
        if not isinstance(score, bool) and isinstance(score, numbers.Real) and math.isfinite(score):
            return float(score)
    except (OverflowError, ValueError, TypeError):
        pass  # larger than any float
    return MissingScore(f"{name} gave no finite number", fault="rater")


def _words(details: Mapping) -> dict[str, str]:
    """What a rater noted, as text that can be stored: a judge's answer may hold half a character."""
    return {str(key): str(value).encode(errors="replace").decode() for key, value in details.items()}


def add_derived_scores(counters: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Counters by rater, of several servers, as one."""
    total: dict[str, dict[str, float]] = {}
    for by_rater in counters:
        for name, counted in by_rater.items():
            of_rater = total.setdefault(name, {})
            for what, number in counted.items():
                of_rater[what] = of_rater.get(what, 0) + number
    return total


JUDGES_SHARE = 0.8
"""Share of the deadline for a batch after which judges that have not answered are no longer waited for."""


@dataclass(frozen=True, kw_only=True)
class RewardServerConfig:
    servers: int
    needs: Mapping[str, float]
    """Ray's resources of each server."""
    checkpoint: str
    """For its tokenizer."""
    codec: ClassSpec
    """Loaded through `codec.load(path)`."""
    raters: tuple[ClassSpec, ...]
    start_seconds: float
    score_seconds: float
    """Deadline for scoring a batch."""
    beat_seconds: float
    """How long a server may give no sign of life."""
    decoders: DecoderConfig | None = None
    """Actors that decode for the servers; None: each server decodes by itself."""


class RewardServer(MonitoredActor):
    """Scores groups. A rater that raises gives Missing, never a number (method §7, rule 1)."""

    def __init__(self, settings: RewardServerConfig, family: Family, answers: pa.Table | None = None) -> None:
        """answers: of remote raters, from before."""
        super().__init__()
        self._seconds = settings.score_seconds
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._codec = None if settings.decoders else build_codec(settings.codec.target, settings.codec.kwargs)
        self._raters: list[Rater] = [part.build() for part in settings.raters]
        for part, rater in zip(settings.raters, self._raters, strict=True):
            if part.name and part.name != rater.name:
                raise InputError(f"reward.functions: {part.target} calls its score {rater.name!r}, not {part.name!r}")
        self._born = time.time()
        if answers is not None:
            self.load_cache(answers)

    def versions(self) -> dict[str, str]:
        """Versions of the raters, and of the codec if it has one, for the records."""
        versions = {rater.name: rater.version for rater in self._raters}
        return versions if self._codec is None else versions | {"codec": self._codec.version}

    def score(
        self, groups: list[ReplyGroup], sounds: list[ray.ObjectRef | None] | None = None
    ) -> list[list[Scorecard | DecodeFailed]]:
        """A card for each reply of each group. sounds: of all replies, one group's after another's, where decoders make
        them."""
        end = time.monotonic() + JUDGES_SHARE * self._seconds
        replies = [(group.prompt, reply) for group in groups for reply in group.replies]
        heard = self.decode([reply.token_ids for _, reply in replies]) if sounds is None else fetch_audio(sounds)
        spoken = [
            SpokenReply(prompt=prompt, reply=reply, text=self._vocabulary.text(reply.token_ids), waveform=waveform)
            for (prompt, reply), waveform in zip(replies, heard, strict=True)
            if not isinstance(waveform, DecodeFailed)
        ]
        rated = iter(score_replies(self._raters, spoken, end - time.monotonic()))
        found = iter([sound if isinstance(sound, DecodeFailed) else next(rated) for sound in heard])
        return [[next(found) for _ in group.replies] for group in groups]

    def rate(self, spoken: list[SpokenReply], raters: list[str]) -> list[Scorecard]:
        """A card for each reply, which is there already, from the raters of these names alone."""
        chosen = [rater for rater in self._raters if rater.name in raters]
        return score_replies(chosen, spoken, JUDGES_SHARE * self._seconds)

    def cache_entries(self) -> pa.Table:
        """What remote raters answered, of the schema `reward.remote.cache.ANSWERS`."""
        return merge_answers(rater.cache.table() for rater in self._raters if hasattr(rater, "cache"))

    def load_cache(self, answers: pa.Table) -> int:
        """Adds answers from elsewhere. Returns how many it was given."""
        for rater in self._raters:
            if hasattr(rater, "cache"):
                rater.cache.load(answers)
        return answers.num_rows

    def counters(self) -> tuple[float, dict[str, dict[str, float]], dict[str, bool]]:
        """When this server was started, what happened with each remote rater since (`remote.Counters`), and whether it
        is left alone now."""
        asked = [rater for rater in self._raters if isinstance(rater, RemoteJudge)]
        return self._born, {r.name: r.counters() for r in asked}, {r.name: r.left_alone for r in asked}

    def decode(self, replies: list[np.ndarray]) -> list[Waveform | None]:
        """The waveform of the speech tokens among ids [T] of each reply, or None when there are none."""
        assert self._codec is not None, "decoders decode"
        return [audio_of(ids, self._vocabulary, self._codec) for ids in replies]

    def measure(self, function: str, sounds: list[Waveform]) -> list[float]:
        """A function of a waveform, named "module:function", of each."""
        measured = load_object(function)
        return [float(measured(sound)) for sound in sounds]
