"""Streams side by side: what the structure allows in each, that it can always end, and what a reply is laid out as."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.grammar import TokenKind, allowed_masks, check_reply_grammar, grammar_table
from speech.multistream_grammar import MultiStream

KINDS = np.array(
    [0, TokenKind.TEXT, TokenKind.SPEECH, TokenKind.FILLER, TokenKind.END_TEXT, TokenKind.STOP, TokenKind.TEXT],
    dtype=np.int8,
)
"""Ids of a toy vocabulary: 0 belongs in no reply."""
T, S, o, E, X, U = range(1, 7)
VOCABULARY = SimpleNamespace(blank=o, end_text=E, end_reply=X)


@pytest.mark.parametrize(
    "reply",
    [
        [T, o, T, o, T, S, E, S, o, S, o, X],
        [T, o, E, o, o, S, o, X],
        # Both streams end in one step.
        [T, o, T, o, T, S, T, S, E, X],
    ],
)
def test_whole_replies(reply):
    assert check_reply_grammar(np.array(reply), MultiStream(delay=2), KINDS) is None


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ([E], "token 0 (id 4) is END_TEXT, expected TEXT"),
        ([o], "token 0"),
        ([T, S], "token 1 (id 2) is SPEECH, expected FILLER"),
        ([T, o, o], "token 2"),
        ([T, o, T, o, S], "token 4"),
        ([T, o, T, o, T, o], "token 5 (id 3) is FILLER, expected SPEECH"),
        ([T, o, E, o, T], "token 4 (id 1) is TEXT, expected FILLER"),
        ([T, o, E, o, o, X], "token 5"),
        ([T, o, T, o, T, S, T, X], "token 7 (id 5) is STOP, expected SPEECH"),
        ([T, o, E, o, o, S, o, X, o], "expected nothing more"),
        ([T, o, E, o, 0], "outside every channel"),
        ([T, o, E, o, o, S], "no end"),
        ([T, o, E, o, o, S, o], "no end"),
    ],
)
def test_what_is_wrong_is_said(reply, complaint):
    assert complaint in check_reply_grammar(np.array(reply, dtype=np.int64), MultiStream(delay=2), KINDS)


@given(st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_every_walk_through_the_allowed_kinds_is_a_valid_reply(seed, delay):
    rng = np.random.default_rng(seed)
    pattern = MultiStream(delay=delay)
    automaton, reply, sets = pattern.follower(), [], []
    while allowed := automaton.allowed():
        choices = [token for token in range(1, 7) if int(KINDS[token]) & int(allowed)]
        assert choices
        # Ending becomes likely, so that the walk ends.
        ends = [token for token in choices if token in (E, X)]
        token = ends[0] if ends and len(reply) > 100 else int(rng.choice(choices))
        sets.append(int(allowed))
        automaton.advance(TokenKind(int(KINDS[token])))
        reply.append(token)
    assert len(reply) % 2 == 0
    assert check_reply_grammar(np.array(reply), pattern, KINDS) is None
    assert allowed_masks(np.array(reply), pattern, KINDS).tolist() == sets
    with pytest.raises(ValueError, match="where the structure allows"):
        automaton.advance(TokenKind.SPEECH)


@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 8))
def test_a_reply_is_laid_out_so_that_it_can_be_taken_apart_again(words, codes, delay):
    pattern = MultiStream(delay=delay)
    reply = pattern.lay_out([T, U][: words % 2 + 1] * words, [S] * codes, VOCABULARY)
    text, speech = reply.reshape(-1, 2).T
    said = [token for token in text if KINDS[token] == TokenKind.TEXT]
    assert speech.tolist() == [o] * delay + [S] * codes + [X]
    if check_reply_grammar(reply, pattern, KINDS) is None:
        assert said == [T, U][: words % 2 + 1] * words
        assert text.tolist() == [*said, E, *[o] * (len(text) - len(said) - 1)]
    else:  # the sound ends before the words do
        assert len([T, U][: words % 2 + 1] * words) > delay + codes


def test_what_the_model_does_not_choose_is_the_only_thing_allowed():
    """So it has probability 1 under the masked distribution, whatever the model."""
    states = grammar_table(MultiStream(delay=6))
    fillers = [allowed for allowed in states.allowed if allowed & TokenKind.FILLER]
    assert fillers
    assert set(fillers) == {int(TokenKind.FILLER)}
    assert np.count_nonzero(KINDS == TokenKind.FILLER) == 1


def test_a_delay_is_no_advance():
    with pytest.raises(ValueError, match="3 steps before"):
        MultiStream(delay=-3)
