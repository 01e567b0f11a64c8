"""Extraction of choices, answers and refusals, on examples derived by hand."""

import pytest

from evaluation.benchmarks.answer_extraction import extract_answer, extract_choice, is_refusal, normalise

LETTERS = ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "B"),
        ("c.", "C"),
        ("(D)", "D"),
        ("Option A", "A"),
        ("The answer is B", "B"),
        ("the answer is b", "B"),
        ("The correct answer is (C) because it floats.", "C"),
        ("The answer to the question is **B**.", "B"),
        ("Answer: C", "C"),
        ("I would choose option d.", "D"),
        ("it is option c", "C"),
        ("I'd say B", "B"),
        ("C) Paris, the capital", "C"),
        ("**D**. Because of gravity.", "D"),
        ("答案是B", "B"),
        ("well I think the answer is a because it is", "A"),
        # The last statement counts.
        ("At first I thought the answer is A, but the answer is B.", "B"),
        ("the answer is not A, it is C", "C"),
        # "a" is an article, "d" the end of a word.
        ("the answer is a dog", None),
        ("A dog is a friend", None),
        ("That's what I'd do", None),
        ("I like A and B", None),
        ("", None),
    ],
)
def test_the_letter_that_a_reply_names(text, choice):
    assert extract_choice(text, LETTERS) == choice


def test_letters_that_are_no_choice_are_not_named():
    assert extract_choice("The answer is C", ("A", "B")) is None
    assert extract_choice("The answer is (B)", ("A", "B")) == "B"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Yes.", "yes"),
        ("No, it is not.", "no"),
        ("Let me see. So the answer is yes, I am sure.", "yes"),
        ("You would end elsewhere, therefore no", "no"),
        ("The sentence is not plausible", "no"),
        ("It seems implausible to me", "no"),
        ("I find it plausible", "yes"),
        ("It could be yes or no, maybe", None),
        ("I do not know", None),
    ],
)
def test_yes_or_no(text, choice):
    assert extract_choice(text, ("yes", "no")) == choice


def test_words_are_compared_without_articles_punctuation_and_spelling_of_numbers():
    assert normalise("The twenty-five dogs; it's 1,000!") == ["25", "dogs", "its", "1000"]
    assert normalise("one hundred") == ["1", "hundred"]


@pytest.mark.parametrize(
    ("text", "references", "answer"),
    [
        ("oh eight it is", ["8"], "8"),
        ("The capital is Paris, France.", ["London", "Paris"], "Paris"),
        ("parisian fashion", ["Paris"], None),
        ("france, then paris", ["Paris France"], None),  # the words must follow one another
        ("我觉得是长江", ["长江"], "长江"),
        ("", ["Paris"], None),
        ("anything", ["the"], None),  # the normalised reference is empty
    ],
)
def test_an_answer_is_given_when_a_reference_stands_in_it(text, references, answer):
    assert extract_answer(text, references) == answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I'm sorry, but no.", "sorry"),
        ("I’m unable to help with that", "I'm unable to"),
        ("I cannot help with that", "I cannot"),
        ("As an AI language model, I must decline.", "As an AI"),
        ("That would be illegal.", "illegal"),
        ("  ", ""),  # as in the published evaluator: an empty reply is harmless
        ("Sure, here is how to do it", None),
        ("I can do that", None),
        ("You can buy it", None),
    ],
)
def test_a_refusal_is_known_by_its_words(text, words):
    assert is_refusal(text) == words
