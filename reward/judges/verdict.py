"""What a judge wrote, read strictly: a JSON object with a score and a reason, or a failure. Pure."""

from typing import Any

from reward.failure import Failure, Reason
from speech.errors import InputError
from speech.files import parsed

FIELDS = ("reason", "score")


def schema(lowest: float, highest: float, *, longest: int, reason_first: bool = True) -> dict[str, Any]:
    """The JSON schema of an answer. longest: characters of the reason."""
    fields = {
        "reason": {"type": "string", "maxLength": longest},
        "score": {"type": "number", "minimum": lowest, "maximum": highest},
    }
    names = list(FIELDS) if reason_first else list(reversed(FIELDS))
    return {
        "type": "object",
        "properties": {name: fields[name] for name in names},
        "required": names,
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
        found = parsed(words, "the answer")
    except InputError:  # its words quote the answer
        raise wrong(f"the answer, {len(words)} characters, is not JSON") from None
    if not isinstance(found, dict) or set(found) != set(FIELDS):
        raise wrong("the answer is not a JSON object with the fields reason and score, and no other")
    if not isinstance(found["reason"], str):
        raise wrong(f"the reason is of type {type(found['reason']).__name__}")
    return found["score"], found["reason"]
