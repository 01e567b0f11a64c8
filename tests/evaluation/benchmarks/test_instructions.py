"""Instruction checks. Each has a reply that follows it and one that does not, derived by hand."""

import pytest

from evaluation.benchmarks.ifeval import (
    CHECKS,
    Instruction,
    checkable,
    follows,
    follows_loosely,
    instruction_problem,
    sentences,
    words,
)

CASES = [
    ("keywords:existence", {"keywords": ["tea", "Milk"]}, "Tea with milk.", "Tea with sugar."),
    ("keywords:frequency", {"keyword": "no", "frequency": 2, "relation": "at least"}, "No, no.", "No."),
    ("keywords:frequency", {"keyword": "no", "frequency": 2, "relation": "less than"}, "No.", "No, no."),
    ("keywords:forbidden_words", {"forbidden_words": ["art"]}, "The heart starts.", "It is Art."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Eve sleeps",
        "a bee",
    ),
    (
        "keywords:key_sentences",
        {"key_sentences": ["Tea is hot.", "Ice is cold."], "num_sentences": 1},
        "I say so. Tea is hot.",
        "Tea is hot. Ice is cold.",
    ),
    ("language:response_language", {"language": "ru"}, "Это чай", "This is tea"),
    ("language:response_language", {"language": "ja"}, "これは茶です", "这是茶"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "Dr. Who came at 3.5 o'clock. He left!",
        "Dr. Who came at 3.5 o'clock.",
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "three words now"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n***\n***\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        'First.\n\n"then, it ended.',
        "Then.\n\nFirst.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. More.", "Bye. PS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s more", "P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nSECTION b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<on tea>>\nHot.", "<< >>\nHot."),
    ("combination:two_responses", {}, "Tea.******Coffee.", "Tea.******Tea."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why tea?"}, "why tea? Because.", "Because. Why tea?"),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'So. "that is all."', "That is all. Bye."),
    ("startend:quotation", {}, ' "tea" ', '"tea" he said'),
    ("multi-turn:constrained_start", {"starter": "I think"}, "  I think so", "So I think"),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "HOT-TEA for ME",
        "HOT tea",
    ),
    ("change_case:english_capital", {}, "TEA, PLEASE!", "TEA, Please!"),
    ("change_case:english_lowercase", {}, "tea, please", "чай"),
    ("punctuation:no_comma", {}, "tea please", "tea, please"),
]


@pytest.mark.parametrize(("name", "arguments", "yes", "no"), CASES, ids=[case[0] for case in CASES])
def test_an_instruction_is_followed_or_not(name, arguments, yes, no):
    instruction = Instruction(name, arguments)
    assert instruction_problem(instruction) is None
    assert checkable(instruction)
    assert follows(instruction, yes)
    assert not follows(instruction, no)


def test_every_instruction_has_a_case():
    assert {case[0] for case in CASES} == set(CHECKS)


def test_nothing_is_followed_without_words():
    assert not follows(Instruction("punctuation:no_comma", {}), " \n ")


@pytest.mark.parametrize(
    "text", ['Sure, here it is:\n"tea"', '"tea"\nI hope so.', 'Sure:\n"tea"\nBye.', '*"tea"*', 'Sure:\n*"tea"*']
)
def test_loosely_the_first_line_the_last_and_asterisks_do_not_count(text):
    instruction = Instruction("startend:quotation", {})
    assert not follows(instruction, text)
    assert follows_loosely(instruction, text)


def test_loosely_the_middle_counts():
    text = 'Sure:\nHere:\n"tea"\nBye.\nAgain, bye.'
    assert not follows_loosely(Instruction("startend:quotation", {}), text)


@pytest.mark.parametrize(
    ("name", "arguments", "wrong"),
    [
        ("length_constraints:number_words", {"relation": "at least"}, "needs 'num_words'"),
        ("length_constraints:number_words", {"num_words": "9", "relation": "at least"}, "'9'; expected int"),
        ("length_constraints:number_words", {"num_words": 9, "relation": "about"}, "allowed: less than, at least"),
        ("keywords:existence", {"keywords": ["tea", ""]}, "must contain only non-empty strings"),
    ],
)
def test_arguments_that_will_not_do_are_named(name, arguments, wrong):
    assert wrong in instruction_problem(Instruction(name, arguments))


def test_what_no_program_checks_is_known_as_such():
    assert not checkable(Instruction("language:response_language", {"language": "de"}))
    assert not checkable(Instruction("mood:cheerful", {}))
    assert instruction_problem(Instruction("mood:cheerful", {})) is None


def test_words_and_sentences_are_told_apart():
    assert words("It's 3.5, well-known") == ["It", "s", "3", "5", "well", "known"]
    assert sentences('He said "no." Then J. Doe left... at last! Why? e.g. this') == [
        'He said "no."',
        "Then J. Doe left...",
        "at last!",
        "Why?",
        "e.g. this",
    ]
