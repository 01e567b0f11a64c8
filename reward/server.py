"""A reward server: the Ray actor that decodes replies and asks the raters. `reward.pool` has many of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from cluster.member import Member
from reward.cache import merged
from reward.decoding import DecoderSettings, Unheard, fetched, sound_of
from reward.parts import Part, codec_of, load
from reward.rater import Rater, Scorecard, SpokenReply
from reward.rating import cards
from reward.remote import RemoteRater
from speech.errors import InputError
from speech.families import Family
from speech.records import Group
from speech.vocabulary import Vocabulary
from speech.waveform import Waveform

JUDGES_SHARE = 0.8
"""Share of the deadline for a batch after which judges that have not answered are no longer waited for."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    servers: int
    needs: Mapping[str, float]
    """Ray's resources of each server."""
    checkpoint: str
    """For its tokenizer."""
    codec: Part
    """Loaded through `codec.load(path)`."""
    raters: tuple[Part, ...]
    start_seconds: float
    score_seconds: float
    """Deadline for scoring a batch."""
    beat_seconds: float
    """How long a server may give no sign of life."""
    decoders: DecoderSettings | None = None
    """Actors that decode for the servers; None: each server decodes by itself."""


class RewardServer(Member):
    """Scores groups. A rater that raises gives Missing, never a number (method §7, rule 1)."""

    def __init__(self, settings: ServerSettings, family: Family, answers: pa.Table | None = None) -> None:
        """answers: of remote raters, from before."""
        super().__init__()
        self._seconds = settings.score_seconds
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._codec = None if settings.decoders else codec_of(settings.codec.use, settings.codec.arguments)
        self._raters: list[Rater] = [part.build() for part in settings.raters]
        for part, rater in zip(settings.raters, self._raters, strict=True):
            if part.name and part.name != rater.name:
                raise InputError(f"reward.raters: {part.use} calls its score {rater.name!r}, not {part.name!r}")
        self._born = time.time()
        if answers is not None:
            self.load_cache(answers)

    def versions(self) -> dict[str, str]:
        """Versions of the raters, and of the codec if it has one, for the records."""
        versions = {rater.name: rater.version for rater in self._raters}
        return versions if self._codec is None else versions | {"codec": self._codec.version}

    def score(
        self, groups: list[Group], sounds: list[ray.ObjectRef | None] | None = None
    ) -> list[list[Scorecard | Unheard]]:
        """A card for each reply of each group. sounds: of all replies, one group's after another's, where decoders make
        them."""
        end = time.monotonic() + JUDGES_SHARE * self._seconds
        replies = [(group.prompt, reply) for group in groups for reply in group.replies]
        heard = self.decode([reply.token_ids for _, reply in replies]) if sounds is None else fetched(sounds)
        spoken = [
            SpokenReply(prompt=prompt, reply=reply, text=self._vocabulary.text(reply.token_ids), waveform=waveform)
            for (prompt, reply), waveform in zip(replies, heard, strict=True)
            if not isinstance(waveform, Unheard)
        ]
        rated = iter(cards(self._raters, spoken, end - time.monotonic()))
        found = iter([sound if isinstance(sound, Unheard) else next(rated) for sound in heard])
        return [[next(found) for _ in group.replies] for group in groups]

    def rate(self, spoken: list[SpokenReply], raters: list[str]) -> list[Scorecard]:
        """A card for each reply, which is there already, from the raters of these names alone."""
        chosen = [rater for rater in self._raters if rater.name in raters]
        return cards(chosen, spoken, JUDGES_SHARE * self._seconds)

    def cache_entries(self) -> pa.Table:
        """What remote raters answered, of the schema `reward.cache.ANSWERS`."""
        return merged(rater.cache.table() for rater in self._raters if hasattr(rater, "cache"))

    def load_cache(self, answers: pa.Table) -> int:
        """Adds answers from elsewhere. Returns how many it was given."""
        for rater in self._raters:
            if hasattr(rater, "cache"):
                rater.cache.load(answers)
        return answers.num_rows

    def counters(self) -> tuple[float, dict[str, dict[str, float]], dict[str, bool]]:
        """When this server was started, what happened with each remote rater since (`remote.Counters`), and whether it
        is left alone now."""
        asked = [rater for rater in self._raters if isinstance(rater, RemoteRater)]
        return self._born, {r.name: r.counters() for r in asked}, {r.name: r.left_alone for r in asked}

    def decode(self, replies: list[np.ndarray]) -> list[Waveform | None]:
        """The waveform of the speech tokens among ids [T] of each reply, or None when there are none."""
        assert self._codec is not None, "decoders decode"
        return [sound_of(ids, self._vocabulary, self._codec) for ids in replies]

    def measure(self, function: str, sounds: list[Waveform]) -> list[float]:
        """A function of a waveform, named "module:function", of each."""
        measured = load(function)
        return [float(measured(sound)) for sound in sounds]
