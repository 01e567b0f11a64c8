"""What a checkpoint is, in a few letters that change with everything that the model and its prompts are made of.

What a judge wrote, read strictly: a JSON object with a score and a reason, or a failure. Pure.
"""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import find_duplicate
from reward.remote.client import FailureReason, JudgeFailure
from speech.checkpoint import check_checkpoint

FIELDS = ("reason", "score")


def score_schema(lowest: float, highest: float, *, longest: int, halves: bool = False) -> dict[str, Any]:
    """The JSON schema of an answer. longest: characters of the reason. halves: whether the score is a multiple of a
    half, which a model that is held to the form cannot write digits of for ever."""
    score: dict[str, Any] = {"type": "number", "minimum": lowest, "maximum": highest}
    if halves:
        score = {"enum": [half / 2 for half in range(math.ceil(2 * lowest), math.floor(2 * highest) + 1)]}
    return {
        "type": "object",
        "properties": {"reason": {"type": "string", "maxLength": longest}, "score": score},
        "required": list(FIELDS),
        "additionalProperties": False,
    }


def parse_score(words: object, usage: object = None) -> tuple[object, str]:
    """(score, reason) as they stand in the answer. Whether the score is one is for
    `reward.remote.client.client.strict` to say.

    usage: what the answer cost, which a failure carries on. Raises Failure for anything but a JSON object with the two
    fields, the reason in words; nothing is searched for a number.
    """

    def wrong(note: str) -> JudgeFailure:
        return JudgeFailure(FailureReason.NOT_UNDERSTOOD, note, usage=usage)

    if not isinstance(words, str) or not words.strip():
        raise wrong("the answer is empty")
    try:
        # Not strict about line breaks within the reason, which a model that is held to a grammar may write as they are.
        found = json.loads(words, object_pairs_hook=_distinct, strict=False)
    except (ValueError, RecursionError):
        raise wrong(f"the answer, {len(words)} characters, is not JSON, or names a field twice") from None
    if not isinstance(found, dict) or set(found) != set(FIELDS):
        raise wrong("the answer is not a JSON object with the fields reason and score, and no other")
    if not isinstance(found["reason"], str):
        raise wrong(f"the reason is of type {type(found['reason']).__name__}")
    return found["score"], found["reason"]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as a dict. json would keep the last of two scores."""
    if find_duplicate(name for name, _ in pairs) is not None:
        raise ValueError("a field appears twice")
    return dict(pairs)


READ = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")
"""Endings of the files that count: weights and their index, configuration, tokenizer, templates, code."""


AT_ONCE = 4


LETTERS = 12


def check_judge(path: Path, *, trust_remote_code: bool) -> None:
    """Raises InputError for a folder that holds no checkpoint, or one that is not trusted."""
    if not path.is_dir():
        raise InputError(f"checkpoint: {str(path)!r} is no folder")
    try:
        check_checkpoint(path, trust_remote_code=trust_remote_code)
    except InputError as error:  # which speaks of the model that is trained
        raise InputError(str(error).replace("model.", "")) from error


def fingerprint(path: Path) -> str:
    """SHA-256 over names and contents, shortened. All of the weights are read: two fine-tunings of a model differ in
    nothing else. About a second for two gigabytes, once for a judge; vLLM then finds them in the page cache."""
    files = sorted(file for file in path.iterdir() if file.suffix in READ and file.is_file())
    with ThreadPoolExecutor(AT_ONCE) as threads:
        contents = list(threads.map(_of_file, files))
    whole = hashlib.sha256()
    for file, content in zip(files, contents, strict=True):
        whole.update(f"{len(file.name)} {file.name} ".encode() + content)
    return whole.hexdigest()[:LETTERS]


def _of_file(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
