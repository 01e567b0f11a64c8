"""Programmatic instruction checks, by the ids and arguments of IFEval.

Zhou et al., "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911). The meaning of each id
follows the released checker. Sentences, capital words and languages are detected without its libraries.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RELATIONS = ("less than", "at least")
CONSTRAINED = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
SCRIPTS = {
    "ar": "\u0600-\u06ff", "fa": "\u0600-\u06ff", "ur": "\u0600-\u06ff", "bn": "\u0980-\u09ff", "bg": "\u0400-\u04ff",
    "gu": "\u0a80-\u0aff", "hi": "\u0900-\u097f", "mr": "\u0900-\u097f", "ne": "\u0900-\u097f", "kn": "\u0c80-\u0cff",
    "ko": "\uac00-\ud7af", "pa": "\u0a00-\u0a7f", "ru": "\u0400-\u04ff", "ta": "\u0b80-\u0bff", "te": "\u0c00-\u0c7f",
    "th": "\u0e00-\u0e7f", "ja": "\u3040-\u30ff\u4e00-\u9fff", "zh": "\u4e00-\u9fff", "en": "A-Za-z",
}  # fmt: skip
"""Letters of languages whose script differs from English. Languages that share a script are not distinguished: replies
are too short for letter statistics. English is thus any Latin-script language."""
ABBREVIATIONS = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|jr|sr|inc|ltd|co|vs|etc|e\.g|i\.e|a\.m|p\.m|u\.s)\.", re.I)


@dataclass(frozen=True)
class Instruction:
    id: str
    """"group:name"."""
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class InstructionCheck:
    needs: Mapping[str, type]
    """Type of each argument."""
    follows: Callable[..., bool]
    """Predicate on the text and the arguments."""


def instruction_problem(instruction: Instruction) -> str | None:
    """Return the error in the arguments, or None if they are valid or the id is unknown."""
    check = CHECKS.get(instruction.id)
    if check is None:
        return None
    for name, kind in check.needs.items():
        value = instruction.arguments.get(name)
        if value is None:
            return f"instruction {instruction.id} needs {name!r}"
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name!r} of instruction {instruction.id} is {value!r}; expected {kind.__name__}"
        if name.endswith("relation") and value not in RELATIONS:
            return f"{name!r} of instruction {instruction.id} is {value!r}; allowed: {', '.join(RELATIONS)}"
        if isinstance(value, list) and not all(isinstance(word, str) and word for word in value):
            return f"{name!r} of instruction {instruction.id} must contain only non-empty strings"
    return None


def checkable(instruction: Instruction) -> bool:
    """Return whether a check exists for this instruction."""
    if instruction.id == "language:response_language":
        return instruction.arguments.get("language") in SCRIPTS
    return instruction.id in CHECKS


def follows(instruction: Instruction, text: str) -> bool:
    """Return whether the text follows the instruction. An empty text never does."""
    check = CHECKS[instruction.id]
    arguments = {name: instruction.arguments[name] for name in check.needs}
    return bool(text.strip()) and check.follows(text, **arguments)


def follows_loosely(instruction: Instruction, text: str) -> bool:
    """Like `follows`, but also accept the text without its first line, last line, both, or Markdown asterisks."""
    lines = text.split("\n")
    cuts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return any(follows(instruction, way) for cut in cuts for way in (cut, cut.replace("*", "")))


def _holds(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Split text into sentences: at . ! or ? before whitespace or the end, and at paragraph breaks.

    Common abbreviations and single capital letters do not end a sentence.
    """
    guarded = ABBREVIATIONS.sub(lambda found: found[0].replace(".", "\0"), text)
    guarded = re.sub(r"\b([A-Z])\.(?=\s+[A-Z])", "\\1\0", guarded)
    found = re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]”’])\s+|(?<=[。！？])|\n\s*\n", guarded)
    return [one.replace("\0", ".").strip() for one in found if re.search(r"\w", one)]


def _in_script(text: str, language: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    own = [letter for letter in letters if re.match(f"[{SCRIPTS[language]}]", letter)]
    if language in ("ja", "zh"):  # both use Han characters; only Japanese has kana
        kana = re.search("[\u3040-\u30ff]", text) is not None
        if kana != (language == "ja"):
            return False
    return not letters or 2 * len(own) > len(letters)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Count paragraphs separated by ***. The text before the first and after the last separator may be empty."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = parts[1:-1]
    return all(part.strip() for part in inner) and sum(bool(part.strip()) for part in parts) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = text.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if not 0 < nth_paragraph <= filled or not parts[nth_paragraph - 1].strip():
        return False
    word = re.match(r"[^.,?!'\"]*", parts[nth_paragraph - 1].split()[0].lstrip("'\""))
    return filled == num_paragraphs and word is not None and word[0].lower() == first_word.lower()


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    spelled = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(spelled, text.lower()) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-).*$", text, re.M)) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    one = [found for found in re.findall(r"\*([^\n*]*)\*", text) if found.strip()]
    two = [found for found in re.findall(r"\*\*([^\n*]*)\*\*", text) if found.strip()]
    return len(one) + len(two) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    inside = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.I).strip()
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _quoted(text: str) -> bool:
    inside = text.strip()
    return len(inside) > 1 and inside[0] == inside[-1] == '"'


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    found = [word for word in re.findall(r"[\w'’-]+", text) if word.isupper()]
    return _holds(len(found), capital_relation, capital_frequency)


def _key_sentences(text: str, key_sentences: Sequence[str], num_sentences: int) -> bool:
    found = set(sentences(text))
    return sum(sentence in found for sentence in key_sentences) == num_sentences


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.I))


CHECKS: dict[str, InstructionCheck] = {
    "keywords:existence": InstructionCheck(
        {"keywords": list}, lambda text, keywords: all(_count(re.escape(word), text) for word in keywords)
    ),
    "keywords:frequency": InstructionCheck(
        {"keyword": str, "frequency": int, "relation": str},
        lambda text, keyword, frequency, relation: _holds(
            _count(re.escape(keyword.strip()), text), relation, frequency
        ),
    ),
    "keywords:forbidden_words": InstructionCheck(
        {"forbidden_words": list},
        lambda text, forbidden_words: not any(_count(rf"\b{re.escape(word)}\b", text) for word in forbidden_words),
    ),
    "keywords:letter_frequency": InstructionCheck(
        {"letter": str, "let_frequency": int, "let_relation": str},
        lambda text, letter, let_frequency, let_relation: _holds(
            Counter(text.lower())[letter.strip().lower()], let_relation, let_frequency
        ),
    ),
    "keywords:key_sentences": InstructionCheck({"key_sentences": list, "num_sentences": int}, _key_sentences),
    "language:response_language": InstructionCheck({"language": str}, _in_script),
    "length_constraints:number_sentences": InstructionCheck(
        {"num_sentences": int, "relation": str},
        lambda text, num_sentences, relation: _holds(len(sentences(text)), relation, num_sentences),
    ),
    "length_constraints:number_words": InstructionCheck(
        {"num_words": int, "relation": str},
        lambda text, num_words, relation: _holds(len(words(text)), relation, num_words),
    ),
    "length_constraints:number_paragraphs": InstructionCheck({"num_paragraphs": int}, _paragraphs),
    "length_constraints:nth_paragraph_first_word": InstructionCheck(
        {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}, _first_word
    ),
    "detectable_content:number_placeholders": InstructionCheck(
        {"num_placeholders": int}, lambda text, num_placeholders: _count(r"\[.*?\]", text) >= num_placeholders
    ),
    "detectable_content:postscript": InstructionCheck({"postscript_marker": str}, _postscript),
    "detectable_format:number_bullet_lists": InstructionCheck({"num_bullets": int}, _bullets),
    "detectable_format:constrained_response": InstructionCheck(
        {}, lambda text: any(answer in text.lower() for answer in CONSTRAINED)
    ),
    "detectable_format:number_highlighted_sections": InstructionCheck({"num_highlights": int}, _highlights),
    "detectable_format:multiple_sections": InstructionCheck({"section_spliter": str, "num_sections": int}, _sections),
    "detectable_format:json_format": InstructionCheck({}, _json),
    "detectable_format:title": InstructionCheck({}, lambda text: _count(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", text) > 0),
    "combination:two_responses": InstructionCheck({}, _two_responses),
    "combination:repeat_prompt": InstructionCheck(
        {"prompt_to_repeat": str},
        lambda text, prompt_to_repeat: text.strip().lower().startswith(prompt_to_repeat.strip().lower()),
    ),
    "startend:end_checker": InstructionCheck(
        {"end_phrase": str},
        lambda text, end_phrase: text.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
    ),
    "startend:quotation": InstructionCheck({}, _quoted),
    "multi-turn:constrained_start": InstructionCheck(
        {"starter": str}, lambda text, starter: re.search(rf"^\s*{re.escape(starter.strip())}", text, re.M) is not None
    ),
    "change_case:capital_word_frequency": InstructionCheck(
        {"capital_frequency": int, "capital_relation": str}, _capital_words
    ),
    "change_case:english_capital": InstructionCheck({}, lambda text: text.isupper() and _in_script(text, "en")),
    "change_case:english_lowercase": InstructionCheck({}, lambda text: text.islower() and _in_script(text, "en")),
    "punctuation:no_comma": InstructionCheck({}, lambda text: "," not in text),
}
