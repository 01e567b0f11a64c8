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
    """Begin- and end-of-speech tokens, and fillers. They train with speech unless the configuration says text."""
    END = 3
    """The end-of-reply token. It trains with text (method §3)."""


_TEXT, _SPEECH, _BOUNDARY, _END = (int(channel) for channel in Channel)
"""As plain numbers: `select` is asked for every reply several times, and members of an enum are slow to get at."""
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
        return (channels == _BOUNDARY) | (channels == _END)
    if selection in ("words", "codes"):
        return channels == (_TEXT if selection == "words" else _SPEECH)
    chosen = (channels == _TEXT) | (channels == _END) if selection == "text" else channels == _SPEECH
    return chosen | (channels == _BOUNDARY) if boundary == selection else chosen
