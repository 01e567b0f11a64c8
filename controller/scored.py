"""Scored replies from a file, in the form of WavAlign's released pair builder (github.com/MM-Speech/WavAlign).

A JSON object a line (.jsonl) or a list of them (.json), an object for each prompt. Of the released form are read:

    id                                  the prompt's name
    output                              the replies, an object by the reply's name, each with
        gemini_score.semantic_score         1..5, becomes the score "semantic"
        gemini_score.paralinguistic_score   1..5, becomes the score "acoustic"
        output-text                         what is said

A reply without one of the two scores is unscored and in no pair; the score that decides is their mean (method §5).

The released form keeps sound in files (audios, output-audio), and only the model's own front end could make its tokens
of them. Here tokens must be given, by fields that the released form does not have:

    prompt_ids      the prompt's token ids; without them the prompt of this `id` in `data.prompts` is taken
    output-ids      in a reply, its token ids, the end-of-reply token included; or
    output-codes    in a reply, its speech codes: text and codes are laid out as the model family interleaves them

Other fields (messages, sft_target_text, …) have no part in a pair and are passed over.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.pairing import Candidate
from speech.errors import InputError
from speech.families import Family
from speech.files import parsed, text, there
from speech.interleave import Pattern, check, kind_table
from speech.records import Prompt
from speech.vocabulary import Vocabulary

SCORES = {"semantic": "semantic_score", "acoustic": "paralinguistic_score"}
"""Fields of `gemini_score` by the name of the score, in the order that breaks ties."""

LARGEST_SCORE = 1e6
"""In size; also keeps out what is not finite."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The replies to one prompt."""

    prompt_id: str
    prompt_ids: np.ndarray
    """int32 [P]."""
    origin: str
    """Where they come from, in words that a pair's labels can follow."""
    candidates: list[Candidate]
    unfit: Mapping[str, int]
    """Replies that can be in no pair, by reason; they are not among the candidates."""
    names: frozenset[str]
    """Every score asked for, whether or not a reply has it."""


def read_scored(
    path: Path, family: Family, vocabulary: Vocabulary, prompts: Mapping[str, Prompt], score: str
) -> Iterator[Scored]:
    """The prompts of a file with their replies.

    prompts: by id, for records that do not carry `prompt_ids`. score: "total", "semantic" or "acoustic".
    Raises InputError naming file, line and reply for what cannot be read or cannot be turned into tokens.
    """
    kinds = kind_table(vocabulary)
    for place, record in _records(path):
        outputs = record.get("output")
        if not isinstance(outputs, dict) or not outputs:
            raise InputError(f"{place}: field 'output' must be an object with the replies by name")
        prompt_id, prompt_ids = _prompt(record, place, vocabulary, prompts)
        candidates, malformed = [], 0
        for label, entry in outputs.items():
            where = f"{place} output {label!r}"
            if not isinstance(entry, dict):
                raise InputError(f"{where}: expected an object, got {type(entry).__name__}")
            scores = _scores(entry, where)
            total = sum(scores.values()) / 2 if len(scores) == len(SCORES) else None
            if total is not None:
                scores["total"] = total
            deciding = scores.get(score) if total is not None else None
            if deciding is None:  # needs no tokens: it is in no pair
                candidates.append(Candidate(label=label, ids=np.empty(0, np.int32), score=None, scores=scores))
                continue
            ids = _reply(entry, where, family.interleave, vocabulary)
            if check(ids, family.interleave, kinds) is not None:
                malformed += 1
            else:
                candidates.append(Candidate(label=label, ids=ids, score=deciding, scores=scores))
        yield Scored(
            prompt_id=prompt_id,
            prompt_ids=prompt_ids,
            origin=f"{place} replies",
            candidates=candidates,
            unfit={"malformed": malformed},
            names=frozenset((*SCORES, "total")),
        )


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    if not there(path):
        raise InputError(f"data file {path} does not exist")
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path}: scored replies are a file .jsonl (an object a line) or .json (a list of objects)")
    content = text(path)
    if path.suffix == ".json":
        items = parsed(content, str(path))
        if not isinstance(items, list):
            raise InputError(f"{path}: expected a list of objects, got {type(items).__name__}")
        found = [(f"{path} record {number}", item) for number, item in enumerate(items, start=1)]
    else:
        lines = [(f"{path} line {number}", line) for number, line in enumerate(content.split("\n"), start=1)]
        found = [(place, parsed(line, place)) for place, line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} has no records")
    for place, record in found:
        if not isinstance(record, dict):
            raise InputError(f"{place}: expected an object, got {type(record).__name__}")
        yield place, record


def _prompt(record: dict, place: str, vocabulary: Vocabulary, prompts: Mapping[str, Prompt]) -> tuple[str, np.ndarray]:
    name = record.get("id")
    if name is not None and type(name) not in (str, int):
        raise InputError(f"{place}: field 'id' must be a name, got {type(name).__name__}")
    if record.get("prompt_ids") is not None:
        ids = _whole_numbers(record["prompt_ids"], "prompt_ids", place, vocabulary.size)
        return place if name is None else str(name), np.asarray(ids, dtype=np.int32)
    if name is None:
        raise InputError(
            f"{place}: the prompt has no token ids; give 'prompt_ids', or the 'id' of a prompt in data.prompts "
            "('messages' and 'audios' are not turned into tokens here)"
        )
    if str(name) not in prompts:
        raise InputError(
            f"{place}: the prompt has no token ids, and data.prompts has none with the id {str(name)!r}; give "
            "'prompt_ids' ('messages' and 'audios' are not turned into tokens here)"
        )
    return str(name), prompts[str(name)].token_ids


def _scores(entry: dict, where: str) -> dict[str, float]:
    given = entry.get("gemini_score")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"{where}: field 'gemini_score' must be an object with {', '.join(SCORES.values())}")
    scores = {}
    for name, field in SCORES.items():
        value = given.get(field)
        if value is None:
            continue
        if type(value) not in (int, float) or not abs(value) <= LARGEST_SCORE:
            raise InputError(
                f"{where}: field {field!r} holds {value!r}, which is no score; leave out what is not known"
            )
        scores[name] = float(value)
    return scores


def _reply(entry: dict, where: str, pattern: Pattern, vocabulary: Vocabulary) -> np.ndarray:
    if entry.get("output-ids") is not None:
        return np.asarray(_whole_numbers(entry["output-ids"], "output-ids", where, vocabulary.size), dtype=np.int32)
    said, codes = entry.get("output-text"), entry.get("output-codes")
    if codes is None or said is None:
        missing = "'output-codes', its speech codes" if isinstance(said, str) else "'output-text' and 'output-codes'"
        raise InputError(
            f"{where}: the reply has no tokens; give 'output-ids', its token ids, or {missing}"
            + (" ('output-audio' is not turned into tokens here)" if "output-audio" in entry else "")
        )
    if not isinstance(said, str):
        raise InputError(f"{where}: field 'output-text' must be text, got {type(said).__name__}")
    words = vocabulary.tokenizer.encode(said, add_special_tokens=False).ids
    back = vocabulary.text(np.asarray(words, dtype=np.int64))
    if back.strip() != said.strip():
        raise InputError(
            f"{where}: the tokenizer makes {back!r} of 'output-text' {said!r}, which is not the same; give 'output-ids'"
        )
    spoken = _whole_numbers(codes, "output-codes", where, vocabulary.codebook)
    return pattern.lay_out(words, [vocabulary.speech_first + code for code in spoken], vocabulary)


def _whole_numbers(value: object, name: str, place: str, size: int) -> list[int]:
    if not isinstance(value, list) or not value or not all(type(number) is int for number in value):
        raise InputError(f"{place}: field {name!r} must be a list of whole numbers with at least one")
    for number in value:
        if not 0 <= number < size:
            raise InputError(f"{place}: field {name!r} holds {number}, outside [0, {size})")
    return value
