"""A dialogue before it is ids: turns, as people had them.

Prompt, Demonstration, Reply, Group and Pair: the records that travel between rooms, and their Arrow schemas.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from speech.vocabulary import select


class ReplyOrigin(StrEnum):
    """Stands in `Reply.worker` for a reply that no rollout worker sampled."""

    RECORDED = "recorded"
    """Read from a file of preference pairs."""
    DEMONSTRATION = "demonstration"
    """The reply of a demonstration."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a caller said, as the model reads it."""

    id: str
    token_ids: np.ndarray
    """int32 [P]."""
    text: str
    """The question in words, for people and for judges."""
    facts: dict[str, str]
    """What raters need to know: the right answer, the manner asked for, …"""
    features: str | None = None
    """File of what the speech encoder heard, for a prompt that has slots for it."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt with a reply worth imitating; the anchor trains on it."""

    prompt_id: str
    prompt_ids: np.ndarray
    """int32 [P]."""
    reply_ids: np.ndarray
    """int32 [T], end-of-reply token included."""
    text: str
    features: str | None = None
    """As `Prompt.features`."""


class Finish(StrEnum):
    """Why sampling of a reply ended."""

    STOP = "stop"
    """The end-of-reply token came."""
    LENGTH = "length"
    """The reply reached the length limit: it is truncated."""
    ABORTED = "aborted"
    """The engine gave it up."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One sampled answer to a prompt."""

    prompt_id: str
    index: int
    """Position within its group."""
    token_ids: np.ndarray
    """int32 [T], end-of-reply token included when it came."""
    channels: np.ndarray
    """int8 [T], values of Channel, -1 for ids that belong to none."""
    logps: np.ndarray
    """float32 [T], log-probability of each token under the very distribution it was sampled from (behaviour policy)."""
    weight_version: int
    """Of the weights that drew its first token."""
    finish: Finish
    defect: str | None
    """What is malformed about the structure, or None (method §7, rule 5)."""
    worker: str = ""
    """Name of the rollout worker."""
    seed: int = 0
    newest_version: int | None = None
    """Of the weights that drew its last token; None: the same as its first."""

    def count(self, selection: str) -> int:
        """Tokens of a selection of `speech.vocabulary`."""
        return int(select(self.channels, selection).sum())


@dataclass(frozen=True, kw_only=True)
class ReplyGroup:
    """A prompt with the G replies sampled for it."""

    prompt: Prompt
    replies: list[Reply] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two replies to a prompt, of which one is the better (method §5)."""

    prompt_id: str
    prompt_ids: np.ndarray
    """int32 [P]."""
    chosen_ids: np.ndarray
    """int32 [T], the better reply, end-of-reply token included."""
    rejected_ids: np.ndarray
    """int32 [T'], the worse one."""
    chosen_score: float | None
    """The score that decided; None when it is not known."""
    rejected_score: float | None
    scores_chosen: dict[str, float]
    """Every known score by name; one that is missing has no entry."""
    scores_rejected: dict[str, float]
    origin: str
    """Where the pair comes from, in words; empty when that is not known."""
    features: str | None = None
    """As `Prompt.features`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """What one side said. Sound comes as codes of the model's codec, or as frames of its speech encoder."""

    role: str
    """system, user or assistant."""
    text: str | None = None
    """In words. Beside sound it stands before it (an instruction), except in the model's own turns, which say it."""
    codes: np.ndarray | None = None
    """int64 [S]."""
    features: int | None = None
    """How many frames the encoder made of the sound; they travel beside the ids (`Prompt.features`)."""
