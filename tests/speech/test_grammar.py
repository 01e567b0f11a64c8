"""The structure automaton: what it allows, what it refuses, and that it can always end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.families import PLAYGROUND
from speech.grammar import (
    AnyOrder,
    Automaton,
    Interleave,
    TokenKind,
    allowed_masks,
    allowed_masks_of,
    check_reply_grammar,
)

KINDS = np.array([0, TokenKind.TEXT, TokenKind.SPEECH, TokenKind.BEGIN, TokenKind.END, TokenKind.STOP], dtype=np.int8)
"""Ids of a toy vocabulary: 0 belongs in no reply."""
T, S, B, E, X = range(1, 6)
PATTERN = PLAYGROUND.interleave
PATTERNS = [PATTERN, Interleave(((1, 3), (4, 2), (2, 3)), 1, True), Interleave(((13, 26),), 0, False)]


def test_ratio_list_of_vita_audio():
    pattern = Interleave.from_ratios([1, 10, 4, 10])
    assert [pattern.chunk(i) for i in range(4)] == [(1, 8), (4, 8), (4, 8), (4, 8)]


@pytest.mark.parametrize(
    "reply",
    [
        [T, T, B, *[S] * 8, E, T, B, *[S] * 3, E, X],
        [T, T, B, *[S] * 8, E, T, T, B, *[S] * 20, E, X],
        [T, B, *[S] * 30, E, X],
        [T, T, B, *[S] * 8, E, X],
        [T, T, B, *[S] * 3, E, X],
    ],
)
def test_whole_replies(reply):
    assert check_reply_grammar(np.array(reply), PATTERN, KINDS) is None


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ([T, T, T], "token 2"),
        ([B, S, E, X], "token 0"),
        ([T, B, E], "token 2"),
        ([T, T, B, *[S] * 8, E, T, B, S, E, T], "token 16"),
        ([T, T, B, *[S] * 9, E, T], "token 13"),
        ([T, T, 0], "outside every channel"),
        ([T, T, B, S], "no end"),
        ([], "no end"),
    ],
)
def test_what_is_wrong_is_said(reply, complaint):
    """Method §7, rule 5: unbalanced boundaries, ids of no channel, no end."""
    assert complaint in check_reply_grammar(np.array(reply, dtype=np.int64), PATTERN, KINDS)


def test_family_without_boundary_tokens():
    pattern = Interleave(chunks=((13, 26),), repeat_from=0, boundaries=False)
    assert check_reply_grammar(np.array([*[T] * 13, *[S] * 26, T, *[S] * 40, X]), pattern, KINDS) is None
    assert "token 13" in check_reply_grammar(np.array([*[T] * 14]), pattern, KINDS)


@given(st.integers(0, 2**32 - 1), st.sampled_from([*PATTERNS, AnyOrder(), AnyOrder(TokenKind.TEXT)]))
def test_every_walk_through_the_allowed_kinds_is_a_valid_reply(seed, pattern):
    rng = np.random.default_rng(seed)
    automaton, reply, sets = pattern.follower(), [], []
    while allowed := automaton.allowed():
        choices = [token for token in range(1, 6) if int(KINDS[token]) & int(allowed)]
        assert choices
        # Ending becomes likely, so that the walk ends.
        token = choices[-1] if len(reply) > 100 else int(rng.choice(choices))
        sets.append(int(allowed))
        automaton.advance(TokenKind(int(KINDS[token])))
        reply.append(token)
    assert check_reply_grammar(np.array(reply), pattern, KINDS) is None
    assert allowed_masks(np.array(reply), pattern, KINDS).tolist() == sets
    parts = [np.array(reply[:length], dtype=int) for length in (1, len(reply), 0, len(reply) // 2)]
    together = allowed_masks_of(parts, pattern, KINDS)
    assert [found.tolist() for found in together] == [sets[: len(part)] for part in parts]


def test_no_replies_have_no_sets():
    assert allowed_masks_of([], PATTERN, KINDS) == []


def test_what_many_replies_are_not_allowed_names_the_token():
    with pytest.raises(ValueError, match=r"token 1 \(id 5\) is not what the structure allows"):
        allowed_masks_of([np.array([T, B, S]), np.array([T, X])], PATTERN, KINDS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_table_goes_round_as_the_pattern_does(pattern):
    """Many full chunks: the states of the repeating ones are met again and again."""
    reply = []
    for index in range(12):
        text, speech = pattern.chunk(index)
        reply += [T] * text + ([B] + [S] * speech + [E] if pattern.boundaries else [S] * speech)
    automaton, sets = Automaton(pattern), []
    for token in [*reply, X]:
        sets.append(int(automaton.allowed()))
        automaton.advance(TokenKind(int(KINDS[token])))
    assert allowed_masks(np.array([*reply, X]), pattern, KINDS).tolist() == sets
    assert check_reply_grammar(np.array([*reply, X]), pattern, KINDS) is None
