"""Channels: which voice of the duet a token belongs to."""

from enum import IntEnum
from typing import Any


class Channel(IntEnum):
    """The channel of one reply token. Stored as int8."""

    TEXT = 0
    """What is said."""
    SPEECH = 1
    """How it sounds: ids in [first, first + codebook)."""
    BOUNDARY = 2
    """Begin- and end-of-speech tokens. They train with speech unless the configuration says text."""
    END = 3
    """The end-of-reply token. It trains with text (method §3)."""


SELECTIONS = ("text", "speech", "format", "words", "codes", "all")
"""The token selections that a route can name. "format" is what gives a reply its form, boundaries and the end; "words"
and "codes" are text and speech without it, so that these three share no token."""


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
    if selection == "format":
        return (channels == Channel.BOUNDARY) | (channels == Channel.END)
    if selection in ("words", "codes"):
        return channels == (Channel.TEXT if selection == "words" else Channel.SPEECH)
    chosen = (
        (channels == Channel.TEXT) | (channels == Channel.END) if selection == "text" else channels == Channel.SPEECH
    )
    return chosen | (channels == Channel.BOUNDARY) if boundary == selection else chosen
