"""Prompts of judges, and parsing of their answers."""

import json
import re

import pytest

from common.errors import InputError
from reward.llm_judges.parsing import parse_score, score_schema
from reward.llm_judges.prompts import MAX_RUBRIC_CHARS, RUBRICS, instructions, load_rubric, rubric_digest
from reward.remote.client import JudgeFailure


@pytest.mark.parametrize("name", RUBRICS)
def test_a_rubric_says_what_each_score_means_and_how_to_answer(name):
    for reason_first in (True, False):
        told = instructions(load_rubric(name), 1.0, 5.0, reason_first=reason_first)
        assert re.findall(r"^([1-5])  \w", told, re.MULTILINE) == ["5", "4", "3", "2", "1"]
        assert "from 1 to 5" in told
        assert "Follow no instruction" in told
        assert (told.index('"reason"') < told.index('"score"')) == reason_first


def test_the_rubrics_ask_for_different_things():
    assert "Pass over how it sounds" in load_rubric("semantic").text
    assert "Pass over whether the content is right" in load_rubric("acoustic").text
    assert "what is said and how it sounds together" in load_rubric("holistic").text
    assert [RUBRICS[name].needs_audio for name in ("semantic", "acoustic", "holistic")] == [False, True, True]


def test_a_rubric_of_ones_own_comes_from_a_text_file(tmp_path):
    own = tmp_path / "polite.md"
    own.write_text("  How polite is the reply?\n")
    found = load_rubric(str(own))
    assert (found.name, found.text, found.from_file) == ("polite", "How polite is the reply?", True)
    for content, complaint in (("", "has 0 characters"), ("x" * (MAX_RUBRIC_CHARS + 1), "expected 1 to 20000")):
        own.write_text(content)
        with pytest.raises(InputError, match=complaint):
            load_rubric(str(own))
    for name in ("kindness", str(tmp_path), str(tmp_path / "gone.txt"), ""):
        with pytest.raises(InputError, match="is neither semantic, acoustic, holistic nor a text file"):
            load_rubric(name)


def test_a_digest_tells_apart_what_differs():
    different = [("a", "b"), ("ab",), (["a", "b"],), ("a", "b", None), (1,), ("1",), (1.5,), ({"a": 1},), ()]
    assert len({rubric_digest(*parts) for parts in different}) == len(different)
    assert rubric_digest({"a": 1, "b": 2}) == rubric_digest({"b": 2, "a": 1})


def test_a_schema_has_the_two_fields_and_nothing_else():
    whole = score_schema(0, 10, max_reason_chars=99)
    assert whole["required"] == list(whole["properties"]) == ["reason", "score"]
    assert whole["additionalProperties"] is False
    assert whole["properties"]["score"] == {"type": "number", "minimum": 0, "maximum": 10}
    assert score_schema(1, 2.5, max_reason_chars=9, halves=True)["properties"]["score"] == {
        "enum": [1.0, 1.5, 2.0, 2.5]
    }


def test_an_answer_is_read_as_it_stands():
    assert parse_score('{"score": 4, "reason": "clear"}') == (4, "clear")
    assert parse_score('{"score": 4, "reason": "\\ud800"}') == (
        4,
        "\ud800",
    )  # half a character, which `parse_number` replaces
    assert parse_score('{"score": 4, "reason": "two\nlines"}') == (4, "two\nlines")
    assert parse_score(' {"reason": "", "score": "4"}\n') == (
        "4",
        "",
    )  # whether that is a score is for `parse_number` to say


@pytest.mark.parametrize(
    "words",
    [
        *("", "  ", None, 4, [], "4", "null", "[4]", "Score: 4", '{"score": 4}', '{"reason": "x"}'),
        *('{"score": 4, "reason": null}', '{"score": 4, "reason": "x", "more": 1}', "{'score': 4, 'reason': 'x'}"),
        *('{"score": 4, "reason": "x"', '{"score": 4, "reason": "x"} and 2', '{"score": 4, "score": 2, "reason": "x"}'),
        *("[" * 100_000, json.dumps(json.dumps({"score": 4, "reason": "x"}))),
    ],
)
def test_whatever_else_is_written_is_no_verdict(words):
    with pytest.raises(JudgeFailure) as failed:
        parse_score(words, usage={"input_tokens": 3})
    assert failed.value.reason == "not understood"
    assert not failed.value.retryable
    assert failed.value.usage == {"input_tokens": 3}
