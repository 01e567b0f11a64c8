"""Channels: which voice of the duet a token belongs to."""

from enum import IntEnum
from typing import Any


class Channel(IntEnum):
    """The channel of one reply token. Stored as int8."""

    TEXT = 0
    """What is said; the end-of-reply token counts as text (method §3)."""
    SPEECH = 1
    """How it sounds: ids in [first, first + codebook)."""
    BOUNDARY = 2
    """Begin- and end-of-speech tokens. They train with speech unless the configuration says text."""


SELECTIONS = ("text", "speech", "all")
"""The token selections that a route, a loss weight or a KL coefficient can name."""


def select(channels: Any, selection: str, *, boundary: str = "speech") -> Any:
    """Which tokens a selection means, for NumPy arrays and torch tensors alike.

    channels: int8 [..., T], values of `Channel`; negative marks tokens outside every channel (prompt, padding).
    boundary: the selection that boundary tokens belong to, "speech" or "text".
    Returns bool [..., T].
    """
    if selection not in SELECTIONS:
        raise ValueError(f"unknown token selection {selection!r}; allowed: {', '.join(SELECTIONS)}")
    if boundary not in ("speech", "text"):
        raise ValueError(f"boundary tokens belong to 'speech' or 'text', not {boundary!r}")
    if selection == "all":
        return channels >= 0
    own = Channel.TEXT if selection == "text" else Channel.SPEECH
    chosen = channels == own
    return chosen | (channels == Channel.BOUNDARY) if boundary == selection else chosen
