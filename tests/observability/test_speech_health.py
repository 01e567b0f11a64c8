"""How an iteration's replies sound, in means."""

from dataclasses import replace

import numpy as np
import pytest

from observability.speech_health import MEASURES, codebook_entropy, speech_health
from reward.scoring import ScoringConfig, score_groups
from tests.controller.examples import card, group, reply

ONE = ScoringConfig(total={"a": 1.0})
TEXT, SPEECH, END = 0, 1, 3


def judged(*measures):
    cards = [replace(card(a=4.0), measures=found) for found in measures]
    return score_groups(group(len(cards)), cards, ONE, [])


def test_means_are_over_the_replies_that_have_the_measure():
    found = speech_health(judged({"pitch_semitones": 8.0, "silence": 0.2}, {"pitch_semitones": 12.0}, {}))
    assert found["pitch_semitones"] == pytest.approx(10.0)
    assert found["silence"] == pytest.approx(0.2)
    assert found["seconds"] == pytest.approx(1.0)
    assert found["word_error"] is None
    assert tuple(found) == MEASURES


def test_entropy_is_that_of_the_speech_tokens_alone():
    every = reply(ids=range(16), channels=[SPEECH] * 16)
    assert codebook_entropy([every, every]) == pytest.approx(np.log(16))
    words = reply(ids=[100, 101, 7, 7, 3], channels=[TEXT, TEXT, SPEECH, SPEECH, END])
    assert codebook_entropy([words]) == 0.0
    uneven = reply(ids=[1, 1, 1, 2], channels=[SPEECH] * 4)
    assert codebook_entropy([uneven]) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


def test_without_speech_there_is_no_entropy():
    assert codebook_entropy([]) is None
    assert codebook_entropy([reply(ids=[5], channels=[TEXT])]) is None
