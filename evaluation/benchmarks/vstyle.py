"""VStyle reader: one folder per language with JSON Lines and recordings, as published (Hugging Face, zhanjun/VStyle).

    DIR/en/metadata.jsonl    {"instruct_id": 112, "ability": "acoustic_attributes/emotion", "instruct_text": "…",
    DIR/en/wav/…              "instruction_audio_path": "…"}

Zhan et al., "VStyle: A Benchmark for Voice Style Adaptation with Spoken Instructions" (arXiv 2509.09716).
"""

from collections.abc import Iterator
from pathlib import Path

from common.errors import InputError
from common.files import check_exists, parse_json, read_text, resolve_within
from evaluation.benchmarks.items import BenchmarkItem, ItemAudio, TaskFilter, TaskKind

ABILITIES = {
    "acoustic_attributes": ("age", "speed", "gender", "emotion", "pitch", "volume", "composite_properties"),
    "instruction": ("emotion", "variation", "style"),
    "role_play": ("character", "scenario"),
    "empathy": ("anger", "sadness_disappointment", "anxiety_fear", "joy_excitement"),
}
"""Abilities by task."""
COMPOSITE = "composite_properties"
LANGUAGES = ("en", "zh")
TASKS = tuple(ABILITIES)
AUDIO = ("instruction_audio_path", "instruct_audio_path", "audio_path", "file_name", "audio")
"""Field names of the question's recording, in order of precedence."""


def weights(parts: tuple[str, ...]) -> list[float]:
    """Return the weight of each "task/ability" in the overall score, as in the released evaluation.

    The four tasks have equal weights. Composite properties take half of the acoustic task. Other abilities of a task
    have equal weights.
    """

    def weight(part: str) -> float:
        task, _, ability = part.partition("/")
        others = len(ABILITIES[task])
        if task != "acoustic_attributes":
            return 0.25 / others
        return 0.125 if ability == COMPOSITE else 0.125 / (others - 1)

    return [weight(part) for part in parts]


def read(folder: Path, chosen: TaskFilter, *, sounds: bool) -> Iterator[BenchmarkItem]:
    """Yield the items of the languages in `folder`, or of the one language whose folder it is.

    sounds: include the recordings, which must then exist. Raises InputError with file and line.
    """
    files = {language: folder / language / "metadata.jsonl" for language in LANGUAGES}
    files = {language: file for language, file in files.items() if check_exists(file)}
    if not files and check_exists(folder / "metadata.jsonl"):
        files = {folder.name if folder.name in LANGUAGES else "": folder / "metadata.jsonl"}
    if not files:
        raise InputError(f"{folder} contains no metadata.jsonl; expected it there or in {' or '.join(LANGUAGES)}")
    for language, file in files.items():
        for item in _file(file, language, sounds):
            if chosen.wants(item.task, TASKS):
                yield item


def _file(path: Path, language: str, sounds: bool) -> Iterator[BenchmarkItem]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        row = parse_json(line, place)
        if not isinstance(row, dict):
            raise InputError(f"{place} is not a JSON object")
        task, part = _ability(row.get("ability"), place)
        name = row.get("instruct_id", row.get("id"))
        if type(name) not in (int, str):
            raise InputError(f"{place}: field 'instruct_id' must be a number or a string, got {name!r}")
        said = row.get("instruct_text")
        if not isinstance(said, str) or not said.strip():
            raise InputError(f"{place}: field 'instruct_text' must be text, got {said!r}")
        yield BenchmarkItem(
            task=task,
            id=f"{language}-{name}" if language else str(name),
            place=place,
            kind=TaskKind.STYLE,
            text=said,
            part=part,
            language=language,
            sound=_sound(row, path.parent, place) if sounds else None,
        )


def _ability(value: object, place: str) -> tuple[str, str]:
    """Return the task and "task/ability"."""
    given = str(value).replace("acoustic_properties", "acoustic_attributes") if isinstance(value, str) else ""
    task, _, ability = given.partition("/")
    if ability not in ABILITIES.get(task, ()):
        known = "; ".join(f"{task}/{'|'.join(abilities)}" for task, abilities in ABILITIES.items())
        raise InputError(f"{place}: field 'ability' is {value!r}; known: {known}")
    return task, given


def _sound(row: dict, folder: Path, place: str) -> ItemAudio:
    field = next((name for name in AUDIO if isinstance(row.get(name), str) and row[name]), None)
    if field is None:
        raise InputError(f"{place} has no recording; set one of the fields {', '.join(AUDIO)}")
    for root in (folder, folder / "wav"):
        try:
            path = resolve_within(root, row[field])
        except InputError as error:
            raise InputError(f"{place}: field {field!r}: {error}") from error
        if check_exists(path):
            return ItemAudio(place=place, path=path)
    raise InputError(
        f"{place}: field {field!r} names {row[field]!r}, which exists neither in {folder} nor in {folder / 'wav'}"
    )
