"""How a family spells a dialogue: the ids that the model reads, and those of the reply that it should give.

The one place where preparation asks a family, and where words are refused that its tokenizer has not.
"""

from collections.abc import Sequence

import numpy as np

from common.errors import InputError
from speech.families import Family
from speech.grammar import TokenKind, grammar_table
from speech.types import Turn
from speech.vocabulary import Vocabulary

VERSION = 2
"""Changes whenever a dialogue would be spelt otherwise: what was prepared before is then prepared again."""


def chat_prompt(family: Family, turns: Sequence[Turn], vocabulary: Vocabulary) -> np.ndarray:
    """int32 [P]: the dialogue up to where the reply begins. Raises InputError for what the family cannot spell."""
    for turn in turns:
        _check(turn.text, vocabulary)
    return family.prompt(turns, vocabulary)


def chat_reply(family: Family, text: str | None, codes: np.ndarray | None, vocabulary: Vocabulary) -> np.ndarray:
    """int32 [T], end-of-reply token included. Raises InputError for what the family cannot spell."""
    if not text:
        raise InputError("a reply needs words, and has none")
    if codes is None and _speaks(family):
        raise InputError("a reply needs words and a recording, and has no recording")
    _check(text, vocabulary)
    return family.reply(text, np.empty(0, np.int64) if codes is None else codes, vocabulary)


def _speaks(family: Family) -> bool:
    return any(allowed & TokenKind.SPEECH for allowed in grammar_table(family.interleave).allowed)


def _check(text: str | None, vocabulary: Vocabulary) -> None:
    """Raises InputError for words that are lost in the tokenizer, such as names of special tokens."""
    said = (text or "").split()
    ids = np.array(vocabulary.tokenizer.encode(" ".join(said), add_special_tokens=False).ids, dtype=np.int64)
    if (back := vocabulary.text(ids).split()) != said:
        lost = next((word for word, found in zip(said, [*back, *[""] * len(said)], strict=False) if word != found), "")
        raise InputError(f"the tokenizer does not know {lost!r} as words of {' '.join(said)!r}")
