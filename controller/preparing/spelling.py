"""How a family spells a dialogue: the ids that the model reads, and those of the reply that it should give.

The one place where preparation asks a family. The embedded world's model knows turns of speech and its own few words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from playground.data import START, Layout
from speech.errors import InputError
from speech.families import Family
from speech.vocabulary import Vocabulary

VERSION = 1
"""Changes whenever a dialogue would be spelt otherwise: what was prepared before is then prepared again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """What somebody said in a dialogue."""

    role: str
    """system, user or assistant."""
    text: str | None
    codes: np.ndarray | None
    """int64 [S], the codec's; None: no recording."""


def prompt(family: Family, turns: Sequence[Turn], vocabulary: Vocabulary) -> np.ndarray:
    """int32 [P]: the dialogue up to where the reply begins. Raises InputError for what the family cannot spell."""
    if family.name != "playground":
        raise InputError(f"model.family: {family.name} has no prompt builder; `duet prepare` knows playground")
    layout = Layout(vocabulary.tokenizer)
    ids: list[int] = []
    for turn in turns:
        if turn.role == "assistant":
            ids += [layout.id(START), *_reply(layout, turn.text, turn.codes)]
        elif turn.codes is not None:
            # Words go before the recording; a turn of speech alone is as in the world's own prompts.
            spoken = layout.prompt(turn.codes)[:-1]
            ids += [spoken[0], *_words(layout, turn.text), *spoken[1:]]
        else:
            ids += [layout.id(START), *_words(layout, turn.text)]
    return np.array([*ids, layout.id(START)], dtype=np.int32)


def reply(family: Family, text: str | None, codes: np.ndarray | None, vocabulary: Vocabulary) -> np.ndarray:
    """int32 [T], end-of-reply token included. Raises InputError for what the family cannot spell."""
    if family.name != "playground":
        raise InputError(f"model.family: {family.name} has no reply builder; `duet prepare` knows playground")
    return np.array(_reply(Layout(vocabulary.tokenizer), text, codes), dtype=np.int32)


def _reply(layout: Layout, text: str | None, codes: np.ndarray | None) -> list[int]:
    if not text or codes is None:
        raise InputError(f"a reply needs words and a recording, and has no {'recording' if text else 'words'}")
    _words(layout, text)
    try:
        return layout.reply(text, codes)
    except ValueError as error:
        raise InputError(str(error)) from error


def _words(layout: Layout, text: str | None) -> list[int]:
    try:
        return [layout.id(word) for word in (text or "").split()]
    except ValueError as error:
        raise InputError(str(error)) from error
