"""Replies that were sampled elsewhere: a JSON object a line, {"task", "id", "text", "audio"}."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from controller.suites.assessing import Answered, spoken_elsewhere
from controller.suites.items import Item
from speech.errors import InputError
from speech.files import parsed, text, there
from speech.paths import within
from speech.waveform import Waveform

AT_ONCE = 128
"""Replies whose sound is in memory at once."""


def read_replies(path: Path, items: Iterable[Item], tasks: Iterable[str]) -> Iterator[list[Answered]]:
    """Every item with its reply, in the order of the items, a few at a time.

    tasks: those that were chosen; replies to others are passed over. Raises InputError naming file and line for what is
    no reply, for two to one item, and for one to an item that there is not.
    """
    found, every = _lines(path), list(items)
    known, chosen = {item.name for item in every}, set(tasks)
    for name, (place, row) in found.items():
        if name not in known and row["task"] in chosen:
            raise InputError(f"{place} answers {name!r}, which is no item of the suite's task")
    for start in range(0, len(every), AT_ONCE):
        yield [_answered(item, found, path.parent) for item in every[start : start + AT_ONCE]]


def _lines(path: Path) -> dict[str, tuple[str, dict]]:
    """(place, row) by "task/id"."""
    if not there(path):
        raise InputError(f"--replies: {path} does not exist")
    found: dict[str, tuple[str, dict]] = {}
    for number, line in enumerate(text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        row = parsed(line, place)
        if not isinstance(row, dict):
            raise InputError(f"{place} is not a JSON object with the fields task, id, text")
        for name in ("task", "id", "text"):
            if not isinstance(row.get(name), str):
                raise InputError(f"{place}: field {name!r} must be text, got {row.get(name)!r}")
        if not isinstance(row.get("audio"), str | None):
            raise InputError(f"{place}: field 'audio' must name a file, got {row['audio']!r}")
        key = f"{row['task']}/{row['id']}"
        if key in found:
            raise InputError(f"{place} answers {key!r}, as does {found[key][0]}")
        found[key] = place, row
    if not found:
        raise InputError(f"{path} has no replies")
    return found


def _answered(item: Item, found: Mapping[str, tuple[str, dict]], folder: Path) -> Answered:
    if item.name not in found:
        return Answered(item=item, spoken=None)
    place, row = found[item.name]
    waveform = None
    if row.get("audio"):
        try:
            waveform = Waveform.read(within(folder, row["audio"]))
        except (InputError, OSError, RuntimeError) as error:  # libsndfile's own error is a RuntimeError
            raise InputError(f"{place}: field 'audio': {row['audio']!r} cannot be read: {error}") from error
    return Answered(item=item, spoken=spoken_elsewhere(item, row["text"], waveform))
