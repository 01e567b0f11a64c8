"""OpenAudioBench reader: one CSV file and one audio folder per task, as published on Hugging Face.

Data set: baichuan-inc/OpenAudioBench.

    DIR/eval_datas/trivia_qa/trivia_qa.csv      question, answer_normalized_value, answer_normalized_aliases,
    DIR/eval_datas/trivia_qa/audios/…           audio_filename

Li et al., "Baichuan-Audio" (arXiv 2502.17239).
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.files import check_exists, read_text, resolve_within
from evaluation.benchmarks.items import BenchmarkItem, ItemAudio, TaskFilter, TaskKind

AUDIO = "audio_filename"
QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
"""Quoted strings in a Python list literal."""


@dataclass(frozen=True, kw_only=True)
class TaskLayout:
    """Columns of a task's CSV file."""

    kind: TaskKind
    question: str
    references: tuple[str, ...] = ()
    """Columns with accepted answers. Only the first must not be empty."""
    separator: str = ""
    """Separator of answers in a cell. Empty: one answer per cell."""


TASKS = {
    "alpaca_eval": TaskLayout(kind=TaskKind.JUDGED, question="instruction"),
    "llama_questions": TaskLayout(kind=TaskKind.ANSWER, question="Questions", references=("Answer",)),
    "reasoning_qa": TaskLayout(kind=TaskKind.JUDGED, question="Prompt", references=("参考答案",)),
    "trivia_qa": TaskLayout(
        kind=TaskKind.ANSWER,
        question="question",
        references=("answer_normalized_value", "answer_normalized_aliases"),
        separator=",",
    ),
    "web_questions": TaskLayout(kind=TaskKind.ANSWER, question="question", references=("answers",), separator=";"),
}


def read(folder: Path, chosen: TaskFilter, *, sounds: bool) -> Iterator[BenchmarkItem]:
    """Yield the items of the tasks in `folder`, the data set's root or its eval_datas.

    sounds: include the recordings, which must then exist. Raises InputError with file and row.
    """
    root = folder / "eval_datas" if (folder / "eval_datas").is_dir() else folder
    files = {task: root / task / f"{task}.csv" for task in TASKS}
    if not any(check_exists(file) for file in files.values()):
        raise InputError(f"{folder} contains no OpenAudioBench files; expected e.g. {files['llama_questions']}")
    for task, file in files.items():
        if not chosen.wants(task, TASKS):
            continue
        if check_exists(file):
            yield from _file(file, task, sounds)
        elif task in chosen.tasks:
            raise InputError(f"--tasks: {file} does not exist")


def _file(path: Path, task: str, sounds: bool) -> Iterator[BenchmarkItem]:
    layout = TASKS[task]
    needed = [layout.question, AUDIO, *layout.references]
    try:
        table = list(csv.DictReader(read_text(path).removeprefix("\ufeff").splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise InputError(f"{path} is not a valid CSV file: {error}") from error
    if not table:
        raise InputError(f"{path} has no rows")
    for name in needed:
        if name not in table[0]:
            raise InputError(f"{path} has no column {name!r}; expected {', '.join(needed)}")
    for number, row in enumerate(table, start=1):
        place = f"{path} row {number}"
        for name in (layout.question, AUDIO, *layout.references[:1]):
            if not (row[name] or "").strip():
                raise InputError(f"{place}: field {name!r} is missing")
        cells = [row[name] or "" for name in layout.references]
        answers = [answer for cell in cells for answer in _answers(cell, layout.separator)]
        yield BenchmarkItem(
            task=task,
            id=Path(row[AUDIO]).stem,
            place=place,
            kind=layout.kind,
            text=row[layout.question].strip(),
            references=tuple(dict.fromkeys(answers)),
            sound=_sound(path.parent / "audios", row[AUDIO].strip(), place) if sounds else None,
        )


def _answers(cell: str, separator: str) -> list[str]:
    """Return the answers in a cell: a Python list literal or separated parts."""
    cell = cell.strip()
    if separator and cell.startswith("[") and cell.endswith("]"):
        quoted = ["".join(pair).strip() for pair in QUOTED.findall(cell)]
        return [answer.replace("\\", "") for answer in quoted if answer]
    parts = cell.split(separator) if separator else [cell]
    return [part.strip() for part in parts if part.strip()]


def _sound(folder: Path, name: str, place: str) -> ItemAudio:
    try:
        path = resolve_within(folder, name)
    except InputError as error:
        raise InputError(f"{place}: field {AUDIO!r}: {error}") from error
    if not check_exists(path):
        raise InputError(f"{place}: field {AUDIO!r} names {path}, which does not exist")
    return ItemAudio(place=place, path=path)
