"""Channels: which voice of the duet a token belongs to.

Which token ids are text, speech codes, boundaries and stops, read from a checkpoint's tokenizer by name.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from common.errors import InputError
from common.files import check_exists, parse_json, read_text


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


MOST_TOKENS = 10_000_000
"""Of a model's output layer: beyond any model, and short of what a table of their channels can fill memory with."""


@dataclass(frozen=True, kw_only=True)
class TokenNames:
    """How a model family spells its special tokens."""

    end_reply: str
    """Ends a reply."""
    pad: str
    """Fills unused positions; never sampled, never scored."""
    begin_speech: str | None = None
    """Opens a speech chunk; None for families without boundary tokens."""
    end_speech: str | None = None
    """Closes a speech chunk."""
    speech: str | None = "<|audio_{}|>"
    """Name of the speech code with number {}; None for models that answer in text alone."""
    codebook: int | None = None
    """Number of speech codes; None counts the names that the tokenizer has."""
    beyond: Literal["foreign", "filler"] = "foreign"
    """What numbered names beyond the codebook are: they belong in no reply, or are fillers."""
    speech_offset: str | None = None
    """Key of config.json with the id of the first speech code, for tokenizers that have no names for them (`speech`
    None); then `codebook` is given."""
    end_text: str | None = None
    """Ends the text of a reply whose streams run side by side; None for families with one stream."""
    blank: str | None = None
    """Stands in a stream that has nothing to say while the other goes on. The structure allows nothing else there, so
    it is no choice of the model's and belongs to no channel."""
    fillers: tuple[str, ...] = ()
    """Tokens of a reply that say nothing and keep a channel's place, such as silence while the other one goes on."""
    slot: str | None = None
    """Stands in a prompt for a frame of the speech encoder's output; None for families that hear codes."""
    never_text: tuple[str, ...] = ()
    """Tokens that no reply may contain, beside all special ones that have no name here (roles, marks of images)."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Token ids of one checkpoint. Speech is [speech_first, speech_first + codebook) (method §7, rule 6)."""

    size: int
    """Rows of the model's output layer; may exceed the tokenizer's own length (padding rows)."""
    text_size: int
    """Ids from here on that are not speech are padding rows; ids below are the tokenizer's."""
    speech_first: int
    codebook: int
    end_reply: int
    pad: int
    begin_speech: int | None
    end_speech: int | None
    forbidden: tuple[int, ...]
    """Ids that no reply may contain."""
    tokenizer: Tokenizer = field(compare=False, repr=False)
    fillers: tuple[int, ...] = ()
    slot: int | None = None
    """Stands in prompts for encoder features; no reply may contain it."""
    end_text: int | None = None
    blank: int | None = None

    def channel_table(self) -> np.ndarray:
        """int8 [size]: the channel of every id as a reply token; -1 for ids that no reply may contain."""
        table = np.full(self.size, Channel.TEXT, dtype=np.int8)
        table[self.text_size :] = -1
        table[self.speech_first : self.speech_first + self.codebook] = Channel.SPEECH
        table[list(self.forbidden)] = -1
        table[self.pad] = -1
        for boundary in (self.begin_speech, self.end_speech, *self.fillers):
            if boundary is not None:
                table[boundary] = Channel.BOUNDARY
        table[self.end_reply] = Channel.END
        if self.end_text is not None:  # each stream has an end of its own, and that of speech is the reply's
            table[self.end_text], table[self.end_reply] = Channel.END, Channel.BOUNDARY
        if self.blank is not None:
            table[self.blank] = -1
        return table

    def channels(self, ids: np.ndarray) -> np.ndarray:
        """int8 [T] for reply ids [T]; -1 where an id does not belong in a reply."""
        return self.channel_table()[np.asarray(ids, dtype=np.int64)]

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """The codec's codes, int64 [S], of the speech tokens among ids [T], in order."""
        ids = np.asarray(ids, dtype=np.int64)
        speech = (ids >= self.speech_first) & (ids < self.speech_first + self.codebook)
        return ids[speech] - self.speech_first

    def text(self, ids: np.ndarray) -> str:
        """The words among reply ids [T]: text tokens without the end-of-reply token."""
        ids = np.asarray(ids, dtype=np.int64)
        words = ids[self.channels(ids) == Channel.TEXT]
        return self.tokenizer.decode(words.tolist(), skip_special_tokens=True)

    @classmethod
    def from_checkpoint(cls, path: Path, names: TokenNames) -> "Vocabulary":
        """Reads `tokenizer.json` and `config.json` of a Hugging Face checkpoint.

        Raises InputError naming the file and the token when one is missing.
        """
        tokenizer_file = path / "tokenizer.json"
        if not check_exists(tokenizer_file):
            raise InputError(f"{path} is not a checkpoint with a tokenizer: {tokenizer_file} does not exist")
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises nothing more exact
            raise InputError(f"{tokenizer_file} is not a tokenizer: {error}") from error

        def identify(name: str, role: str) -> int:
            found = tokenizer.token_to_id(name)
            if found is None:
                raise InputError(f"{tokenizer_file} has no token {name!r}, the {role} token of this model family")
            return found

        def optional(name: str | None, role: str) -> int | None:
            return None if name is None else identify(name, role)

        text_size = tokenizer.get_vocab_size(with_added_tokens=True)
        settings = _settings(path)
        size = _output_rows(path, settings, at_least=text_size)
        # Speech tokens that the codec has no code for are neither speech nor text (method §7, rule 5).
        first, codebook, beyond = size, 0, list[int]()
        if names.speech is not None:
            first = identify(names.speech.format(0), "first speech")
            named = _count_codes(tokenizer, names.speech)
            codebook = names.codebook or named
            beyond = [identify(names.speech.format(number), "speech") for number in range(codebook, named)]
            last = identify(names.speech.format(codebook - 1), "last speech")
            if last - first != codebook - 1:
                raise InputError(
                    f"{tokenizer_file}: speech tokens must be contiguous; {names.speech.format(0)!r} is {first} and "
                    f"{names.speech.format(codebook - 1)!r} is {last}, {codebook} codes"
                )
        elif names.speech_offset is not None:
            codebook = names.codebook or 0
            first = _offset(path, settings, names.speech_offset, at_least=text_size, at_most=size - codebook)
        end_reply, pad = identify(names.end_reply, "end-of-reply"), identify(names.pad, "padding")
        begin_speech = optional(names.begin_speech, "begin-of-speech")
        end_speech = optional(names.end_speech, "end-of-speech")
        end_text, blank = optional(names.end_text, "end-of-text"), optional(names.blank, "blank")
        slot = optional(names.slot, "encoder slot")
        fillers = [identify(name, "filler") for name in names.fillers]
        if names.beyond == "filler":
            fillers, beyond = fillers + beyond, []
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        of_replies = {end_reply, pad, begin_speech, end_speech, end_text, blank, *fillers}
        of_replies |= {*range(first, first + codebook)}
        reserved = {identify(name, "reserved") for name in names.never_text} | special - of_replies
        return cls(
            size=size,
            text_size=text_size,
            speech_first=first,
            codebook=codebook,
            end_reply=end_reply,
            pad=pad,
            begin_speech=begin_speech,
            end_speech=end_speech,
            forbidden=tuple(sorted(reserved | {*beyond, *([] if slot is None else [slot])})),
            tokenizer=tokenizer,
            fillers=tuple(fillers),
            slot=slot,
            end_text=end_text,
            blank=blank,
        )


def _count_codes(tokenizer: Tokenizer, pattern: str) -> int:
    count = 0
    while tokenizer.token_to_id(pattern.format(count)) is not None:
        count += 1
    return count


def _settings(path: Path) -> dict:
    """Of config.json."""
    config_file = path / "config.json"
    if not check_exists(config_file):
        raise InputError(f"{path} is not a checkpoint: {config_file} does not exist")
    settings = parse_json(read_text(config_file), str(config_file))
    if not isinstance(settings, dict) or "vocab_size" not in settings:
        raise InputError(f"{config_file} is not a model configuration with a vocab_size")
    return settings


def _output_rows(path: Path, settings: dict, *, at_least: int) -> int:
    config_file, size = path / "config.json", settings["vocab_size"]
    if type(size) is not int or size > MOST_TOKENS:
        raise InputError(f"{config_file}: vocab_size is {size!r}, not a whole number up to {MOST_TOKENS}")
    if size < at_least:
        raise InputError(f"{config_file}: vocab_size is {size}, but the tokenizer beside it has {at_least} tokens")
    return size


def _offset(path: Path, settings: dict, key: str, *, at_least: int, at_most: int) -> int:
    """Where speech codes begin, behind the tokenizer's own ids and within the output layer."""
    first = settings.get(key)
    if type(first) is not int or not at_least <= first <= at_most:
        raise InputError(
            f"{path / 'config.json'}: {key} is {first!r}, where the first speech code has an id from {at_least} to "
            f"{at_most}: behind the tokenizer's own, with room for all codes"
        )
    return first
