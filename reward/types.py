"""The rater interface, scorecards and missing scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from speech.audio import Waveform
from speech.types import Prompt, Reply


@dataclass(frozen=True)
class MissingScore:
    """A score that does not exist. It never becomes a number (method §7, rule 1)."""

    reason: str
    """Metric label: a few fixed words, the same for the same cause."""
    fault: str = "reply"
    """"reply" (nothing to rate) or "rater" (the rater failed, which says nothing about the reply)."""


Score = float | MissingScore
"""A number on the rater's scale (1..5 unless configured otherwise), or MissingScore."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpokenReply:
    """A reply as a listener gets it: text and decoded audio."""

    prompt: Prompt
    reply: Reply
    text: str
    """Decoded text channel."""
    waveform: Waveform | None
    """Decoded speech channel; None when the reply has no speech tokens."""


class Rater(Protocol):
    """Rate one aspect of a spoken reply. The configuration names implementations as "module:Class"."""

    name: str
    version: str
    """Change it whenever the same reply could get another score; recorded with every reply."""

    def rate(self, spoken: SpokenReply) -> Score:
        """Return a score, or MissingScore with the reason. An exception counts as missing as well."""
        ...


@dataclass(frozen=True, kw_only=True)
class RaterOutput:
    """The score of one reply from one rater."""

    score: Score
    details: dict[str, str] = field(default_factory=dict)
    """Notes for people."""


class BatchRater(Rater, Protocol):
    """A rater that scores many replies in one call, such as a judge behind a network."""

    def rate_all(self, spoken: Sequence[SpokenReply], timeout_s: float) -> list[RaterOutput]:
        """Return one output per reply, in order. Replies without an answer after `timeout_s` are missing.

        Replaces `rate` and runs in its own thread. A reply that fails leaves the others as they are.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """All scores of one reply."""

    scores: dict[str, Score]
    """One entry per rater."""
    details: dict[str, str]
    """Raters' notes for people: the words heard, the reason given."""
    seconds: float
    """Audio length; 0 without speech."""
    measures: dict[str, float] = field(default_factory=dict)
    """Acoustic measures of a complete reply (`speech.acoustics.measures`); no entry where measuring failed."""

    def number(self, rater: str) -> float | None:
        """Return the rater's score, or None if it is missing."""
        score = self.scores.get(rater)
        return None if score is None or isinstance(score, MissingScore) else score
