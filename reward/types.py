"""What a rater is, and what a missing score is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from speech.audio import Waveform
from speech.types import Prompt, Reply


@dataclass(frozen=True)
class MissingScore:
    """A score that does not exist. It stays missing: it never becomes a number (method §7, rule 1)."""

    reason: str
    """A few fixed words, the same for the same cause: it labels a metric."""
    fault: str = "reply"
    """Whose it is: "reply" (nothing there to rate) or "rater" (it failed, which says nothing about the reply)."""


Score = float | MissingScore
"""A number on the rater's scale (1..5 unless configured otherwise), or Missing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpokenReply:
    """A reply as a listener gets it."""

    prompt: Prompt
    reply: Reply
    text: str
    """The words of the text channel."""
    waveform: Waveform | None
    """The decoded speech channel; None when the reply has no speech tokens."""


class Rater(Protocol):
    """Rates one aspect of a spoken reply. Implementations are named in the configuration as "module:Class"."""

    name: str
    version: str
    """Changes whenever the same reply could get another score; on record for every reply."""

    def rate(self, spoken: SpokenReply) -> Score:
        """A score, or Missing with the reason. Raising counts as Missing as well."""
        ...


@dataclass(frozen=True, kw_only=True)
class RaterOutput:
    """What one rater made of one reply."""

    score: Score
    details: dict[str, str] = field(default_factory=dict)
    """What it noted, for people."""


class BatchRater(Rater, Protocol):
    """A rater that is better asked about many replies at once: a judge that is reached over a network."""

    def rate_all(self, spoken: Sequence[SpokenReply], seconds: float) -> list[RaterOutput]:
        """One for each reply, in order, within so many seconds: what is not there by then is Missing. Called in a
        thread of its own; used in place of `rate`. A reply that fails leaves the others as they are."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """What the raters said of one reply."""

    scores: dict[str, Score]
    """One entry per rater."""
    details: dict[str, str]
    """What raters noted, for people: the words heard, the reason given."""
    seconds: float
    """Audio length; 0 without speech."""
    measures: dict[str, float] = field(default_factory=dict)
    """How a whole reply sounds (`speech.acoustics.measures`); no entry for what could not be measured."""

    def number(self, rater: str) -> float | None:
        score = self.scores.get(rater)
        return None if score is None or isinstance(score, MissingScore) else score
