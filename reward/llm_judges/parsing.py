"""Strict parsing of a judge's answer, and checks and fingerprint of a judge's checkpoint."""

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


def score_schema(lowest: float, highest: float, *, max_reason_chars: int, halves: bool = False) -> dict[str, Any]:
    """Return the JSON schema of an answer.

    Args:
        halves: Allow multiples of 0.5 only, so that constrained decoding cannot append digits without end.
    """
    score: dict[str, Any] = {"type": "number", "minimum": lowest, "maximum": highest}
    if halves:
        score = {"enum": [half / 2 for half in range(math.ceil(2 * lowest), math.floor(2 * highest) + 1)]}
    return {
        "type": "object",
        "properties": {"reason": {"type": "string", "maxLength": max_reason_chars}, "score": score},
        "required": list(FIELDS),
        "additionalProperties": False,
    }


def parse_score(text: object, usage: object = None) -> tuple[object, str]:
    """Return (score, reason) as written. `reward.remote.client.parse_number` validates the score.

    Raise JudgeFailure for anything but a JSON object with exactly these two fields and a text reason. No number is
    extracted from free text.

    Args:
        usage: Usage of the answer, attached to the failure.
    """

    def failure(note: str) -> JudgeFailure:
        return JudgeFailure(FailureReason.NOT_UNDERSTOOD, note, usage=usage)

    if not isinstance(text, str) or not text.strip():
        raise failure("the answer is empty")
    try:
        # strict=False allows raw line breaks in the reason, which grammar-constrained models may write.
        answer = json.loads(text, object_pairs_hook=_reject_duplicates, strict=False)
    except (ValueError, RecursionError):
        raise failure(f"the answer, {len(text)} characters, is not JSON, or names a field twice") from None
    if not isinstance(answer, dict) or set(answer) != set(FIELDS):
        raise failure("the answer is not a JSON object with the fields reason and score, and no other")
    if not isinstance(answer["reason"], str):
        raise failure(f"the reason is of type {type(answer['reason']).__name__}")
    return answer["score"], answer["reason"]


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict. json itself would keep the last of two scores."""
    if find_duplicate(name for name, _ in pairs) is not None:
        raise ValueError("a field appears twice")
    return dict(pairs)


HASHED_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")
"""Files that make up the fingerprint: weights and their index, configuration, tokenizer, templates, code."""


NUM_HASH_THREADS = 4


FINGERPRINT_CHARS = 12


def check_judge(path: Path, *, trust_remote_code: bool) -> None:
    """Raise InputError for a folder without a checkpoint, or a checkpoint with code that is not trusted."""
    if not path.is_dir():
        raise InputError(f"checkpoint: {str(path)!r} is not a folder")
    try:
        check_checkpoint(path, trust_remote_code=trust_remote_code)
    except InputError as error:  # its message names the keys of the trained model
        raise InputError(str(error).replace("model.path", "checkpoint").replace("model.", "")) from error


def fingerprint(path: Path) -> str:
    """Return a shortened SHA-256 over file names and contents.

    It reads all weights, because two fine-tunings of a model differ in nothing else. This takes about a second for two
    gigabytes, once per judge, and leaves the files in the page cache for vLLM.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in HASHED_SUFFIXES and file.is_file())
    with ThreadPoolExecutor(NUM_HASH_THREADS) as threads:
        digests = list(threads.map(_file_digest, files))
    combined = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        combined.update(f"{len(file.name)} {file.name} ".encode() + digest)
    return combined.hexdigest()[:FINGERPRINT_CHARS]


def _file_digest(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
