"""The replies that a run recorded, as candidates for preference pairs.

Scored replies from a file, in the form of WavAlign's released pair builder (github.com/MM-Speech/WavAlign).

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

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import check_exists, parse_json, read_text
from data.pairing import Candidate
from speech.families import Family
from speech.grammar import Grammar, check_reply_grammar, token_kinds
from speech.types import Finish, Prompt, ReplyOrigin
from speech.vocabulary import Vocabulary

SCORES = {"semantic": "semantic_score", "acoustic": "paralinguistic_score"}
"""Fields of `gemini_score` by the name of the score, in the order that breaks ties."""


LARGEST_SCORE = 1e6
"""In size; also keeps out what is not finite."""


@dataclass(frozen=True, kw_only=True)
class ReplyScores:
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
) -> Iterator[ReplyScores]:
    """The prompts of a file with their replies.

    prompts: by id, for records that do not carry `prompt_ids`. score: "total", "semantic" or "acoustic".
    Raises InputError naming file, line and reply for what cannot be read or cannot be turned into tokens.
    """
    kinds = token_kinds(vocabulary)
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
            if check_reply_grammar(ids, family.interleave, kinds) is not None:
                malformed += 1
            else:
                candidates.append(Candidate(label=label, ids=ids, score=deciding, scores=scores))
        yield ReplyScores(
            prompt_id=prompt_id,
            prompt_ids=prompt_ids,
            origin=f"{place} replies",
            candidates=candidates,
            unfit={"malformed": malformed},
            names=frozenset((*SCORES, "total")),
        )


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    if not check_exists(path):
        raise InputError(f"data file {path} does not exist")
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path}: scored replies are a file .jsonl (an object a line) or .json (a list of objects)")
    content = read_text(path)
    if path.suffix == ".json":
        items = parse_json(content, str(path))
        if not isinstance(items, list):
            raise InputError(f"{path}: expected a list of objects, got {type(items).__name__}")
        found = [(f"{path} record {number}", item) for number, item in enumerate(items, start=1)]
    else:
        lines = [(f"{path} line {number}", line) for number, line in enumerate(content.split("\n"), start=1)]
        found = [(place, parse_json(line, place)) for place, line in lines if line.strip()]
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


def _reply(entry: dict, where: str, pattern: Grammar, vocabulary: Vocabulary) -> np.ndarray:
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


COLUMNS = ("prompt_id", "index", "worker", "finish", "defect", "token_ids", "total", "scores", "missing")
"""What is read of a run's replies; other columns may come and go."""


def _replies(directory: Path) -> dict[int, Path]:
    found = (directory / "replies").glob("*.parquet")
    return dict(sorted((int(path.stem), path) for path in found if path.stem.isdigit()))


def select_iterations(directory: Path, wanted: str | None) -> list[int]:
    """The recorded iterations that are wanted, "7" or "1-40" (None: all), at least one. Raises InputError."""
    recorded = list(_replies(directory))
    if not recorded:
        raise InputError(f"{directory / 'replies'} has no replies (yet)")
    if wanted is None:
        return recorded
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", wanted)
    if not match:
        raise InputError(f"--iterations: {wanted!r} is not a number or a range such as 1-40")
    first, last = int(match[1]), int(match[2] or match[1])
    chosen = [number for number in recorded if first <= number <= last]
    if not chosen:
        raise InputError(
            f"--iterations: {directory} has replies of the iterations {recorded[0]} to {recorded[-1]}, none in {wanted}"
        )
    return chosen


def read_run(
    directory: Path, iterations: Sequence[int], prompts: Mapping[str, Prompt], source: str, score: str
) -> Iterator[ReplyScores]:
    """The recorded replies of a run, a prompt of an iteration at a time, in their recorded order.

    prompts: the training data by id, which lie in the file `source`. score: the name of the score that decides. Raises
    InputError when a reply's prompt is not among them.
    """
    paths = _replies(directory)
    for iteration in iterations:
        path = paths[iteration]
        for prompt_id, rows in _groups(_rows(path)):
            if prompt_id not in prompts:
                raise InputError(
                    f"{path} has replies to the prompt {prompt_id!r}, which {source} does not have; "
                    "data.prompts must be the file that the run was trained with"
                )
            unfit = Counter(reason for row in rows if (reason := _unfit(row)))
            yield ReplyScores(
                prompt_id=prompt_id,
                prompt_ids=prompts[prompt_id].token_ids,
                origin=f"run {directory.resolve().name} iteration {iteration} replies",
                candidates=[_candidate(row, score) for row in rows if not _unfit(row)],
                unfit=unfit,
                names=frozenset(name for row in rows for name in [*dict(row["scores"]), *dict(row["missing"])]),
            )


def _groups(rows: Iterable[dict]) -> list[tuple[str, list[dict]]]:
    """Rows by prompt. Demonstrations that were rated are no samples; a prompt that was dealt twice, at the end of an
    epoch and at the start of the next, is two groups."""
    groups: list[tuple[str, list[dict]]] = []
    latest: dict[str, list[dict]] = {}
    for row in rows:
        if row["worker"] == ReplyOrigin.DEMONSTRATION:
            continue
        own = latest.get(row["prompt_id"])
        if own is None or row["index"] <= own[-1]["index"]:
            own = latest[row["prompt_id"]] = []
            groups.append((row["prompt_id"], own))
        own.append(row)
    return groups


def _rows(path: Path) -> list[dict]:
    try:
        # partitioning=None: a "key=value" in the path of the run is no column.
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    for name in COLUMNS:
        if name not in table.column_names:
            raise InputError(f"{path} has no column {name!r}; expected {', '.join(COLUMNS)}")
    return table.select(list(COLUMNS)).to_pylist()


def _unfit(row: dict) -> str | None:
    if row["finish"] != Finish.STOP:
        return "not finished"
    return None if row["defect"] is None else "malformed"


def _candidate(row: dict, score: str) -> Candidate:
    scores = {name: number for name, number in [*row["scores"], ("total", row["total"])] if number is not None}
    return Candidate(
        label=str(row["index"]),
        ids=np.asarray(row["token_ids"], dtype=np.int32),
        score=scores.get(score),
        scores=scores,
    )
