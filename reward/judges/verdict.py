"""What a judge wrote, read strictly: a JSON object with a score and a reason, or a failure. Pure."""

import json
import math
from typing import Any

from reward.failure import Failure, Reason
from speech.files import repeated

FIELDS = ("reason", "score")


def schema(lowest: float, highest: float, *, longest: int, halves: bool = False) -> dict[str, Any]:
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


def read(words: object, usage: object = None) -> tuple[object, str]:
    """(score, reason) as they stand in the answer. Whether the score is one is for `reward.failure.strict` to say.

    usage: what the answer cost, which a failure carries on. Raises Failure for anything but a JSON object with the two
    fields, the reason in words; nothing is searched for a number.
    """

    def wrong(note: str) -> Failure:
        return Failure(Reason.NOT_UNDERSTOOD, note, usage=usage)

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
    if repeated(name for name, _ in pairs) is not None:
        raise ValueError("a field appears twice")
    return dict(pairs)
