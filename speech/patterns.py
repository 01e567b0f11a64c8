"""Structures of a reply other than chunks by count (`speech.interleave.Interleave`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech.interleave import Kind
from speech.vocabulary import Vocabulary


@dataclass(frozen=True)
class Unordered:
    """Kinds of token in whatever order the model gives them, up to the end of the reply."""

    kinds: Kind = Kind.TEXT | Kind.SPEECH
    """Those that may come."""
    chunk: tuple[int, int] = (1, 1)
    """(text tokens, speech tokens) in turn of a reply that is laid out."""

    def follower(self) -> "_Any":
        return _Any(self.kinds)

    def lay_out(self, text: Sequence[int], speech: Sequence[int], vocabulary: Vocabulary) -> np.ndarray:
        """In turn by `chunk`; what is left over of either channel comes last. Speech that the pattern has no place for
        is left out."""
        words, codes = self.chunk
        spoken = speech if Kind.SPEECH in self.kinds else ()
        ids: list[int] = []
        for turn in range(max(-(-len(text) // words), -(-len(spoken) // codes))):
            ids += text[turn * words : (turn + 1) * words]
            ids += spoken[turn * codes : (turn + 1) * codes]
        return np.asarray([*ids, vocabulary.end_reply], dtype=np.int32)


class _Any:
    """Empty at first, then anything, then over."""

    def __init__(self, kinds: Kind) -> None:
        self._kinds = kinds
        self._state = "empty"

    def allowed(self) -> Kind:
        if self._state == "empty":
            return self._kinds
        return self._kinds | Kind.STOP if self._state == "begun" else Kind(0)

    def advance(self, kind: Kind) -> None:
        if not kind & self.allowed():
            raise ValueError(f"{kind.name} where the structure allows {self.allowed().name}")
        self._state = "over" if kind == Kind.STOP else "begun"

    def state(self) -> str:
        return self._state
