"""The interleave structure of a reply, as a small automaton: which kinds of token may come next.

Most families alternate chunks by count, which is `Interleave`; `speech.grammar` has what others do. A reply alternates
chunks of text and of speech, (t₁, s₁), (t₂, s₂), … by the family's pattern. Text may run out inside any chunk: the
speech that follows is then the last and as long as it needs to be. So the states are

    TEXT ──begin──▶ SPEECH ──end──▶ TEXT (next chunk) or DONE
                       │ text ran out, or the chunk overflowed
                       └───────────▶ FINAL SPEECH ──end──▶ CLOSING ──end of reply──▶ DONE

The automaton knows kinds of token, not ids, so that one automaton serves every vocabulary and both the sampler's
mask and the check of a finished reply. Both meet it token by token, so for them it is written out once as a table.

Structures of a reply other than chunks by count (`speech.grammar.Interleave`).
"""

import copy
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from typing import Protocol

import numpy as np

from speech.vocabulary import Vocabulary


class TokenKind(IntFlag):
    """Kinds of token; a set of kinds is what an automaton allows next."""

    TEXT = 1
    SPEECH = 2
    BEGIN = 4
    END = 8
    STOP = 16
    FILLER = 32
    """Says nothing, and keeps a channel's place (`TokenNames.fillers`, `TokenNames.blank`)."""
    END_TEXT = 64
    """Ends the text where streams run side by side (`speech.multistream_grammar`)."""


class GrammarState(Protocol):
    """Follows one reply token by token."""

    def allowed(self) -> TokenKind:
        """The kinds that may come next; Kind(0) after the end of the reply."""
        ...

    def advance(self, kind: TokenKind) -> None:
        """Takes the next token's kind. Raises ValueError when the structure does not allow it."""
        ...

    def state(self) -> Hashable:
        """What decides about all that may follow: equal states allow the same replies from here on. There are finitely
        many."""
        ...


class Grammar(Hashable, Protocol):
    """A family's structure. Patterns are values: hashable, and equal where they mean the same."""

    def follower(self) -> GrammarState:
        """At the start of a reply."""
        ...

    def lay_out(self, text: Sequence[int], speech: Sequence[int], vocabulary: Vocabulary) -> np.ndarray:
        """int32 [T]: a reply of text ids and speech ids, its end included. Where they do not fit together it is not
        well-formed; `check_reply_grammar` says so."""
        ...


@dataclass(frozen=True)
class Interleave:
    """A family's pattern."""

    chunks: tuple[tuple[int, int], ...]
    """(text tokens, speech tokens) of each chunk, boundary tokens not counted."""
    repeat_from: int
    """Chunks from this index on repeat for ever: 1 for ((1, 8), (4, 8)) means 1:8, then 4:8, 4:8, …"""
    boundaries: bool
    """Whether begin- and end-of-speech tokens surround each speech chunk."""

    def __post_init__(self) -> None:
        if not 0 <= self.repeat_from < len(self.chunks):
            raise ValueError(f"repeat_from {self.repeat_from} is outside the {len(self.chunks)} chunks")
        if any(text < 1 or speech < 1 for text, speech in self.chunks):
            raise ValueError(f"every chunk needs at least one text and one speech token; got {self.chunks}")

    def chunk(self, index: int) -> tuple[int, int]:
        if index < len(self.chunks):
            return self.chunks[index]
        period = len(self.chunks) - self.repeat_from
        return self.chunks[self.repeat_from + (index - self.repeat_from) % period]

    @classmethod
    def from_ratios(cls, ratios: list[int]) -> "Interleave":
        """VITA-Audio's ratio list: text and audio counts in turn, audio counts including the two boundary tokens,
        the last pair repeating (method §10). [1, 10, 4, 10] is 1 text, 8 speech, then 4 text, 8 speech, 4 text, …"""
        if not ratios or len(ratios) % 2:
            raise ValueError(f"a ratio list has pairs of counts; got {ratios}")
        chunks = tuple((ratios[i], ratios[i + 1] - 2) for i in range(0, len(ratios), 2))
        return cls(chunks=chunks, repeat_from=len(chunks) - 1, boundaries=True)

    def follower(self) -> "Automaton":
        return Automaton(self)

    def lay_out(self, text: Sequence[int], speech: Sequence[int], vocabulary: Vocabulary) -> np.ndarray:
        """In the chunks of the pattern, the speech left over in the last."""
        ids: list[int] = []
        said = heard = chunk = 0
        while said < len(text):
            words, codes = self.chunk(chunk)
            ids += text[said : said + words]
            said += words
            end = heard + codes if said < len(text) else len(speech)
            spoken = list(speech[heard:end])
            if self.boundaries and vocabulary.begin_speech is not None and vocabulary.end_speech is not None:
                spoken = [vocabulary.begin_speech, *spoken, vocabulary.end_speech]
            ids += spoken
            heard, chunk = end, chunk + 1
        return np.asarray([*ids, vocabulary.end_reply], dtype=np.int32)


class Automaton:
    """Follows one reply token by token."""

    __slots__ = ("_chunk", "_count", "_final", "_pattern", "_phase")

    def __init__(self, pattern: Interleave) -> None:
        self._pattern = pattern
        self._phase = TokenKind.TEXT
        self._chunk = 0
        self._count = 0
        self._final = False

    def allowed(self) -> TokenKind:
        """The kinds that may come next; Kind(0) after the end of the reply."""
        text, speech = self._pattern.chunk(self._chunk)
        into_speech = TokenKind.BEGIN if self._pattern.boundaries else TokenKind.SPEECH
        if self._phase == TokenKind.TEXT:
            if self._count == 0:
                # A new chunk; the reply may also end here when the last chunk came out exactly full.
                return TokenKind.TEXT | TokenKind.STOP if self._chunk else TokenKind.TEXT
            return TokenKind.TEXT | into_speech if self._count < text else into_speech
        if self._phase == TokenKind.SPEECH:
            if self._count == 0:
                return TokenKind.SPEECH
            if self._pattern.boundaries:
                return TokenKind.SPEECH | TokenKind.END
            if self._final:
                return TokenKind.SPEECH | TokenKind.STOP
            return TokenKind.SPEECH | TokenKind.STOP | (TokenKind.TEXT if self._count == speech else TokenKind(0))
        if self._phase == TokenKind.END:
            return TokenKind.STOP
        return TokenKind(0)

    def advance(self, kind: TokenKind) -> None:
        """Takes the next token's kind. Raises ValueError when the structure does not allow it."""
        if not kind & self.allowed():
            raise ValueError(f"{kind.name} where the structure allows {self.allowed().name}")
        text, speech = self._pattern.chunk(self._chunk)
        if kind == TokenKind.STOP:
            self._phase = TokenKind.STOP
        elif kind == TokenKind.TEXT:
            if self._phase == TokenKind.SPEECH:  # families without boundary tokens go straight on to the next chunk
                self._next_chunk()
            self._count += 1
        elif kind == TokenKind.BEGIN:
            self._enter_speech(text)
        elif kind == TokenKind.SPEECH:
            if self._phase == TokenKind.TEXT:
                self._enter_speech(text)
            self._count += 1
            self._final = self._final or self._count > speech
        else:  # END
            if self._final or self._count < speech:
                self._phase = TokenKind.END
            else:
                self._next_chunk()

    def state(self) -> tuple[TokenKind, int, int, bool]:
        """What decides about all that may follow: equal states allow the same replies from here on."""
        chunks, period = len(self._pattern.chunks), len(self._pattern.chunks) - self._pattern.repeat_from
        again = self._chunk - chunks  # only the very first chunk is like no later one, so one round more is told apart
        chunk = self._chunk if again < period else chunks + again % period
        return self._phase, chunk, min(self._count, 1) if self._final else self._count, self._final

    def _enter_speech(self, text: int) -> None:
        self._final = self._count < text
        self._phase = TokenKind.SPEECH
        self._count = 0

    def _next_chunk(self) -> None:
        self._phase = TokenKind.TEXT
        self._chunk += 1
        self._count = 0


def token_kinds(vocabulary: Vocabulary) -> np.ndarray:
    """int8 [size]: the kind of every id; 0 for ids that no reply may contain."""
    table = np.full(vocabulary.size, int(TokenKind.TEXT), dtype=np.int8)
    channels = vocabulary.channel_table()
    table[channels < 0] = 0
    table[vocabulary.speech_first : vocabulary.speech_first + vocabulary.codebook] = int(TokenKind.SPEECH)
    if vocabulary.begin_speech is not None:
        table[vocabulary.begin_speech] = int(TokenKind.BEGIN)
    if vocabulary.end_speech is not None:
        table[vocabulary.end_speech] = int(TokenKind.END)
    table[list(vocabulary.fillers)] = int(TokenKind.FILLER)
    table[vocabulary.end_reply] = int(TokenKind.STOP)
    if vocabulary.end_text is not None:
        table[vocabulary.end_text] = int(TokenKind.END_TEXT)
    if vocabulary.blank is not None:
        table[vocabulary.blank] = int(TokenKind.FILLER)
    return table


@dataclass(frozen=True, kw_only=True)
class GrammarTable:
    """The automaton of a pattern with a number for each state, 0 for the first. Lists, as tokens come one by one."""

    allowed: list[int]
    """By state: the set of kinds that may come next."""
    after: list[list[int]]
    """By state and kind: the state that follows; -1 where the kind is not allowed, or is none (0)."""


@cache
def grammar_table(pattern: Grammar) -> GrammarTable:
    """Writes out the automaton of a pattern."""
    first = pattern.follower()
    numbers, waiting = {first.state(): 0}, deque([first])
    allowed: list[int] = []
    after: list[list[int]] = []
    while waiting:
        automaton = waiting.popleft()
        allowed.append(int(automaton.allowed()))
        after.append([-1] * (int(max(TokenKind)) + 1))
        for kind in TokenKind:
            if kind & automaton.allowed():
                follower = copy.copy(automaton)
                follower.advance(kind)
                if follower.state() not in numbers:
                    numbers[follower.state()] = len(numbers)
                    waiting.append(follower)
                after[-1][kind] = numbers[follower.state()]
    return GrammarTable(allowed=allowed, after=after)


def check_reply_grammar(ids: np.ndarray, pattern: Grammar, kinds: np.ndarray) -> str | None:
    """None when reply ids [T] follow the pattern to their end; else what is wrong and where, in one sentence."""
    states, state = grammar_table(pattern), 0
    for position, kind in enumerate(kinds[ids].tolist()):
        before, state = state, states.after[state][kind]
        if state < 0:
            found = TokenKind(kind).name or "a token outside every channel"
            expected = TokenKind(states.allowed[before]).name or "nothing more"
            return f"token {position} (id {int(ids[position])}) is {found}, expected {expected}"
    return None if not states.allowed[state] else "the reply has no end"


def allowed_masks(ids: np.ndarray, pattern: Grammar, kinds: np.ndarray) -> np.ndarray:
    """int8 [T]: at each position of a valid reply [T], the set of kinds that the structure allowed there. Raises
    ValueError for one that is not valid."""
    states, state = grammar_table(pattern), 0
    sets = []
    for position, kind in enumerate(kinds[ids].tolist()):
        sets.append(states.allowed[state])
        state = states.after[state][kind]
        if state < 0:
            raise ValueError(f"token {position} (id {int(ids[position])}) is not what the structure allows")
    return np.array(sets, dtype=np.int8)


def allowed_masks_of(replies: Sequence[np.ndarray], pattern: Grammar, kinds: np.ndarray) -> list[np.ndarray]:
    """`allowed_masks` of many replies at once, which takes about as long as one."""
    states = grammar_table(pattern)
    allowed, after = np.array(states.allowed, dtype=np.int8), np.array(states.after)
    order = np.argsort([-len(ids) for ids in replies], kind="stable")
    lengths = np.array([len(replies[index]) for index in order], dtype=np.int64)
    found = np.zeros((len(replies), lengths.max(initial=0)), dtype=np.int8)
    taken = np.zeros(found.shape, dtype=np.int8)
    for row, index in enumerate(order):
        taken[row, : lengths[row]] = kinds[replies[index]]
    state = np.zeros(len(replies), dtype=np.int64)
    for position in range(found.shape[1]):
        going = int(np.searchsorted(-lengths, -position, side="left"))  # the first so many are longer
        found[:going, position] = allowed[state[:going]]
        state[:going] = after[state[:going], taken[:going, position]]
        if (wrong := np.flatnonzero(state[:going] < 0)).size:
            token = int(replies[order[wrong[0]]][position])
            raise ValueError(f"token {position} (id {token}) is not what the structure allows")
    sets: list[np.ndarray] = [np.empty(0, dtype=np.int8)] * len(replies)
    for row, index in enumerate(order):
        sets[index] = found[row, : lengths[row]].copy()
    return sets


def follow_grammar(values: np.ndarray, offsets: np.ndarray, pattern: Grammar, kinds: np.ndarray) -> np.ndarray:
    """bool [rows]: which replies follow the pattern to their end, as `check_reply_grammar` says, all of them a token
    at a time.

    values: ids of all replies; reply r is values[offsets[r]:offsets[r + 1]].
    """
    states = grammar_table(pattern)
    after = np.array([*states.after, [-1] * len(states.after[0])])  # -1, the last row, stays what it is
    lengths = np.diff(offsets)
    state = np.zeros(len(lengths), dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")  # those that go on are the first ones
    going = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")
    for position, count in enumerate(going):
        now = order[:count]
        state[now] = after[state[now], kinds[values[offsets[now] + position]]]
    over = np.array([*(allowed == 0 for allowed in states.allowed), False])
    return over[state]


Structure = tuple[Grammar, np.ndarray]
"""The pattern that sampling was held to, and the kinds of all ids."""


@dataclass(frozen=True)
class AnyOrder:
    """Kinds of token in whatever order the model gives them, up to the end of the reply."""

    kinds: TokenKind = TokenKind.TEXT | TokenKind.SPEECH
    """Those that may come."""
    chunk: tuple[int, int] = (1, 1)
    """(text tokens, speech tokens) in turn of a reply that is laid out."""

    def follower(self) -> "_Any":
        return _Any(self.kinds)

    def lay_out(self, text: Sequence[int], speech: Sequence[int], vocabulary: Vocabulary) -> np.ndarray:
        """In turn by `chunk`; what is left over of either channel comes last. Speech that the pattern has no place for
        is left out."""
        words, codes = self.chunk
        spoken = speech if TokenKind.SPEECH in self.kinds else ()
        ids: list[int] = []
        for turn in range(max(-(-len(text) // words), -(-len(spoken) // codes))):
            ids += text[turn * words : (turn + 1) * words]
            ids += spoken[turn * codes : (turn + 1) * codes]
        return np.asarray([*ids, vocabulary.end_reply], dtype=np.int32)


class _Any:
    """Empty at first, then anything, then over."""

    def __init__(self, kinds: TokenKind) -> None:
        self._kinds = kinds
        self._state = "empty"

    def allowed(self) -> TokenKind:
        if self._state == "empty":
            return self._kinds
        return self._kinds | TokenKind.STOP if self._state == "begun" else TokenKind(0)

    def advance(self, kind: TokenKind) -> None:
        if not kind & self.allowed():
            raise ValueError(f"{kind.name} where the structure allows {self.allowed().name}")
        self._state = "over" if kind == TokenKind.STOP else "begun"

    def state(self) -> str:
        return self._state
