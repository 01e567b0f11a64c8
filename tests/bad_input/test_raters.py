"""Reward functions that cannot be built, and their answers: a finite number or a missing score."""

import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reward.server import _check_score, _storable_details
from reward.types import MissingScore
from tests.bad_input.door import Setup, refused

pytestmark = pytest.mark.timeout(60)

PICKY, MUTE = "tests.bad_input.raters:Picky", "tests.bad_input.raters:Mute"
NAMED = {
    "a class that is not there": ("{name: a, target: 'tests.bad_input.raters:Nobody'}", "reward.functions.a", "Nobody"),
    "a module that is not there": ("{name: a, target: 'nowhere.at.all:Nobody'}", "reward.functions.a", "nowhere"),
    "no colon": ("{name: a, target: tests.bad_input.raters}", "reward.functions.a", "not of the form module:Class"),
    "no module": ("{name: a, target: ':Picky'}", "reward.functions.a", "':Picky' cannot be loaded"),
    "a relative module": ("{name: a, target: '.raters:Picky'}", "reward.functions.a", "cannot be loaded"),
    "a module that cannot be read": ("{name: a, target: 'broken_rater:A'}", "reward.functions.a", "broken_rater"),
    "a module that raises": ("{name: a, target: 'raising_rater:A'}", "reward.functions.a", "out of order"),
    "a number": ("{name: a, target: 'tests.bad_input.raters:NUMBER'}", "reward.functions.a", "int", "not a class"),
    "a class without rate": (f"{{name: mute, target: '{MUTE}'}}", "reward.functions.mute", "no method 'rate'"),
    "another name": (f"{{name: quick, target: '{PICKY}', kwargs: {{scale: 1}}}}", "names its score 'picky'"),
    "too few arguments": (f"{{name: picky, target: '{PICKY}'}}", "reward.functions.picky", "no arguments", "'scale'"),
    "unknown arguments": (
        f"{{name: picky, target: '{PICKY}', kwargs: {{scale: 1, key: s3cret}}}}", "reward.functions.picky", "'key'",
    ),
    "a keyword that is a number": (f"{{name: picky, target: '{PICKY}', kwargs: {{1: 2}}}}", "reward.functions.picky"),
    "kwargs that are a list": (f"{{name: picky, target: '{PICKY}', kwargs: [1]}}", "reward"),
}  # fmt: skip
"""By name: a rater of the configuration, and what the error must mention."""


@pytest.mark.parametrize("name", NAMED)
def test_raters_that_cannot_be_had(setup: Setup, name: str, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(setup.folder)
    (setup.folder / "broken_rater.py").write_text("class A(:\n")
    (setup.folder / "raising_rater.py").write_text("raise RuntimeError('out of order')\n")
    rater, *mentions = NAMED[name]
    called = rater.removeprefix("{name: ").partition(",")[0]
    overrides = (f"reward.functions=[{rater}]", f"reward.weights={{{called}: 1}}", "reward.composites={}")
    message = refused(setup.folder, lambda: setup.enter(*overrides), *mentions)
    assert "s3cret" not in message


class Strange:
    """Raise on every attribute."""

    def __getattribute__(self, name: str):
        raise RuntimeError(name)


SCORES = (
    st.none() | st.booleans() | st.text() | st.binary() | st.complex_numbers() | st.fractions() | st.decimals()
    | st.integers() | st.integers(min_value=10**300, max_value=10**400) | st.floats()
    | st.lists(st.floats()) | st.dictionaries(st.text(), st.floats()) | st.datetimes()
    | st.builds(np.float32, st.floats(width=32)) | st.builds(np.float64, st.floats())
    | st.builds(np.bool_, st.booleans())
    | st.builds(np.array, st.lists(st.floats())) | st.builds(np.array, st.floats())
    | st.builds(
        MissingScore, st.none() | st.text() | st.lists(st.text()), fault=st.sampled_from(["reply", "rater", "", 3])
    )
)  # fmt: skip
"""Answers that a judge may give."""


@given(score=SCORES)
@example(score=Fraction(10**400))
@example(score=10**400)
@example(score=Decimal("4.5"))
@example(score=math.nan)
@example(score=True)
@example(score="5")
@example(score=Strange)
@example(score=MissingScore(["a"]))
def test_an_answer_is_a_finite_number_or_missing(score):
    found = _check_score("judge", score)
    if isinstance(found, MissingScore):
        assert isinstance(found.reason, str)
        assert found.fault in ("reply", "rater")
        return
    assert type(found) is float
    assert math.isfinite(found)
    assert not isinstance(score, bool | np.bool_ | str)
    assert found == pytest.approx(float(score))


@given(details=st.dictionaries(st.text(max_size=5) | st.integers(), st.text() | st.floats() | st.none()))
@example(details={"heard": "\ud800"})
def test_what_a_judge_notes_can_be_stored(details):
    stored = _storable_details(details)
    assert all(type(key) is type(value) is str for key, value in stored.items())
    for words in (*stored, *stored.values()):
        assert words.encode().decode() == words
