"""Facts and splits, without audio."""

import numpy as np
import pytest

from playground import task
from playground.voices import MANNERS, manner_named

SIZES = {"base": 3000, "train": 500, "held_out": 512, "held_out_facts": 192}


@pytest.fixture(scope="module")
def splits() -> task.Splits:
    return task.make_splits(3, **SIZES)


def test_every_answer_is_true_and_sayable():
    answers = {fact.text: fact.answer for fact in task.all_facts()}
    assert answers["three plus five"] == "eight"
    assert answers["nine minus two"] == "seven"
    assert answers["bigger two or nine"] == "nine"
    assert answers["smaller two or nine"] == "two"
    assert set(answers.values()) == set(task.ANSWERS)


def test_splits_have_their_sizes_and_repeat(splits: task.Splits):
    assert {name: len(getattr(splits, name)) for name in SIZES} == SIZES
    assert task.make_splits(3, **SIZES) == splits
    assert task.make_splits(4, **SIZES) != splits


def test_no_rendering_is_in_two_splits(splits: task.Splits):
    rows = [rendering for name in SIZES for rendering in getattr(splits, name)]
    assert len(set(rows)) == len(rows)


def test_held_out_asks_known_facts_by_pairs_never_trained_on(splits: task.Splits):
    trained = [*splits.base, *splits.train]
    assert {r.fact for r in splits.held_out} <= {r.fact for r in trained}
    pairs = {(r.fact, r.caller, r.manner) for r in trained}
    assert not pairs & {(r.fact, r.caller, r.manner) for r in splits.held_out}


def test_held_out_facts_are_never_trained_on_in_either_order(splits: task.Splits):
    trained = {r.fact for r in (*splits.base, *splits.train, *splits.held_out)}
    unknown = {r.fact for r in splits.held_out_facts}
    assert not trained & (unknown | {fact.twin for fact in unknown})
    assert {fact.operation for fact in unknown} == set(task.OPERATIONS)


def test_the_source_is_as_mixed_as_it_says():
    generator = np.random.default_rng(0)
    fact, asked = task.Fact("plus", 3, 5), manner_named("high-slow")
    lines = [task.draw_line(fact, asked, generator) for _ in range(4000)]
    said = [task.said_answer(line.text) for line in lines]
    assert np.mean([word == "eight" for word in said]) == pytest.approx(task.ANSWER_RIGHT, abs=0.03)
    assert np.mean([line.manner.pitch == "high" for line in lines]) == pytest.approx(task.AXIS_RIGHT, abs=0.03)
    assert np.mean([line.manner.tempo == "slow" for line in lines]) == pytest.approx(task.AXIS_RIGHT, abs=0.03)
    wrong = [said.count(word) for word in task.ANSWERS if word != "eight"]
    assert min(wrong) > 0.5 * max(wrong)
    assert all(line.text.split()[0] == task.OPENERS[line.manner.tempo] for line in lines)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("oh ten it is", "ten"), ("well two it is", "two"), ("ten it is", None), ("oh five it is", None), ("", None)],
)
def test_said_answer(text: str, answer: str | None):
    assert task.said_answer(text) == answer


def test_an_answer_outside_the_set_is_refused():
    with pytest.raises(ValueError, match="'four' is not an answer"):
        task.line("four", MANNERS[0])


def test_an_unknown_manner_is_refused():
    with pytest.raises(ValueError, match="no manner 'loud'"):
        manner_named("loud")


def test_used_up_renderings_are_an_error():
    pairs, generator = [("en-us+f1", MANNERS[0])], np.random.default_rng(0)
    fact = task.all_facts()[0]
    used = {task.Rendering(fact, *pairs[0], rate, pitch) for rate in range(80, 450) for pitch in range(100)}
    with pytest.raises(ValueError, match="used up"):
        task.render(fact, pairs, generator, used)
