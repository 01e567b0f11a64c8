"""Structure of a reply whose text and speech run side by side, a token of each in every step.

Everything else knows a reply as one row of tokens, so the streams are laid in turn, the text token of a step before its
speech token. With a delay of 2:

    step      0     1     2     3     4     5     6
    text      t₀    t₁    t₂    end   ·     ·     ·
    speech    ·     ·     s₀    s₁    s₂    s₃    stop
    reply     t₀ ·  t₁ ·  t₂ s₀ end s₁ · s₂ · s₃  · stop

The dots are blanks: no other token may stand there, so they have probability 1 and no model chooses them. Speech begins
`delay` steps behind the text and ends the reply, once the text has ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech.grammar import TokenKind
from speech.vocabulary import Vocabulary

STREAMS = 2
"""Text and speech, in this order."""


@dataclass(frozen=True)
class MultiStream:
    """A family's pattern."""

    delay: int
    """Steps that speech is behind the text."""

    def __post_init__(self) -> None:
        if self.delay < 0:
            raise ValueError(f"speech cannot come {-self.delay} steps before the text that it says")

    def follower(self) -> "SideBySide":
        return SideBySide(self.delay)

    def lay_out(self, text: Sequence[int], speech: Sequence[int], vocabulary: Vocabulary) -> np.ndarray:
        """Ends with the speech; of text that is longer than its sound the rest is lost, and the reply not valid."""
        blank, end_text = vocabulary.blank, vocabulary.end_text
        if blank is None or end_text is None:
            raise ValueError("streams that run side by side need a blank and an end of the text")
        spoken = [*[blank] * self.delay, *speech, vocabulary.end_reply]
        said = [*text, end_text, *[blank] * len(spoken)][: len(spoken)]
        return np.stack([said, spoken], axis=1).astype(np.int32).reshape(-1)


class SideBySide:
    """Follows one reply token by token."""

    __slots__ = ("_begun", "_delay", "_ended", "_over", "_spoken", "_step", "_stream")

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._step = 0
        """No further than the delay: from there on all steps are alike."""
        self._stream = 0
        self._begun = self._ended = self._spoken = self._over = False
        """Whether there was text, its end, speech, and the reply's end."""

    def allowed(self) -> TokenKind:
        """The kinds that may come next; Kind(0) after the end of the reply."""
        if self._over:
            return TokenKind(0)
        if self._stream == 0:
            if self._ended:
                return TokenKind.FILLER
            return TokenKind.TEXT | TokenKind.END_TEXT if self._begun else TokenKind.TEXT
        if self._step < self._delay:
            return TokenKind.FILLER
        return TokenKind.SPEECH | TokenKind.STOP if self._spoken and self._ended else TokenKind.SPEECH

    def advance(self, kind: TokenKind) -> None:
        """Takes the next token's kind. Raises ValueError when the structure does not allow it."""
        if not kind & self.allowed():
            raise ValueError(f"{kind.name} where the structure allows {self.allowed().name}")
        self._begun = self._begun or kind == TokenKind.TEXT
        self._ended = self._ended or kind == TokenKind.END_TEXT
        self._spoken = self._spoken or kind == TokenKind.SPEECH
        self._over = kind == TokenKind.STOP
        self._step = min(self._step + self._stream, self._delay)
        self._stream = 1 - self._stream

    def state(self) -> tuple[int, int, bool, bool, bool, bool]:
        """What decides about all that may follow: equal states allow the same replies from here on."""
        return self._stream, self._step, self._begun, self._ended, self._spoken, self._over
