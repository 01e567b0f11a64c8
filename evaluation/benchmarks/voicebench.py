"""VoiceBench reader: one folder per task, Parquet files per split, as published (Hugging Face, hlt-lab/voicebench).

    DIR/mmsu/law-00000-of-00001.parquet     audio {bytes, path}, prompt, reference
    DIR/sd-qa/usa-00000-of-00001.parquet    audio, prompt, reference
    DIR/ifeval/test-00000-of-00001.parquet  audio, prompt, key, instruction_id_list, kwargs
    DIR/bbh/test-…parquet                   audio, prompt, reference, id
    DIR/advbench/test-…parquet              audio, prompt; the same for open-ended tasks

Chen et al., "VoiceBench: Benchmarking LLM-Based Voice Assistants" (arXiv 2410.17196).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from common.files import parse_json, resolve_within
from data.parquet import read_rows, refuse_missing
from evaluation.benchmarks.ifeval import Instruction, instruction_problem
from evaluation.benchmarks.items import BenchmarkItem, ItemAudio, TaskFilter, TaskKind

TASKS: dict[str, TaskKind] = {
    "alpacaeval": TaskKind.JUDGED,
    "alpacaeval_full": TaskKind.JUDGED,
    "commoneval": TaskKind.JUDGED,
    "wildvoice": TaskKind.JUDGED,
    "sd-qa": TaskKind.ANSWER,
    "mmsu": TaskKind.CHOICE,
    "openbookqa": TaskKind.CHOICE,
    "bbh": TaskKind.CHOICE,
    "ifeval": TaskKind.INSTRUCTIONS,
    "advbench": TaskKind.REFUSAL,
}
LETTERS = ("A", "B", "C", "D")
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
AT_ONCE = 32
"""Maximum rows with audio in memory."""
BASE = [pa.field("prompt", pa.string())]
REFERENCE = pa.field("reference", pa.string())
KEY = pa.field("key", pa.int64())
ID = pa.field("id", pa.string())
INSTRUCTIONS = pa.field("instruction_id_list", pa.list_(pa.string()))


def read(folder: Path, chosen: TaskFilter, *, sounds: bool) -> Iterator[BenchmarkItem]:
    """Yield the items of the tasks in `folder`. sounds: include the recordings.

    Raises InputError with file and row.
    """
    there = [task for task in TASKS if (folder / task).is_dir()]
    if not there:
        raise InputError(f"{folder} contains no VoiceBench folder; expected at least one of: {', '.join(TASKS)}")
    for task in TASKS:
        if not chosen.wants(task, TASKS):
            continue
        if task not in there:
            if task in chosen.tasks:
                raise InputError(f"--tasks: {folder} has no folder {task!r}")
            continue
        files = sorted((folder / task).glob("*.parquet"))
        if not files:
            raise InputError(f"{folder / task} has no Parquet file")
        counted: dict[str, int] = {}
        for file in files:
            yield from _file(file, task, counted, sounds)


def _file(path: Path, task: str, counted: dict[str, int], sounds: bool) -> Iterator[BenchmarkItem]:
    """Yield the items of one file, which may be a shard. counted: rows read so far, by split."""
    split = SHARD.sub("", path.stem)
    kind = TASKS[task]
    schema = pa.schema(
        [
            *BASE,
            *([REFERENCE] if kind in (TaskKind.CHOICE, TaskKind.ANSWER) else []),
            *([ID] if task == "bbh" else []),
            *([KEY, INSTRUCTIONS] if kind is TaskKind.INSTRUCTIONS else []),
        ]
    )
    recordings = _column(path, "audio") if sounds else None
    arguments = _column(path, "kwargs") if kind is TaskKind.INSTRUCTIONS else None
    for place, row in read_rows(path, schema):
        refuse_missing(row, (), place)
        number = counted[split] = counted.get(split, 0) + 1
        more: dict[str, Any] = {}
        if kind is TaskKind.CHOICE:
            reference, more["choices"] = _choice(row["reference"], task, place)
            more["references"] = (reference,)
        elif kind is TaskKind.ANSWER:
            more["references"] = (row["reference"],)
        elif arguments is not None:
            more["instructions"] = _instructions(row["instruction_id_list"], next(arguments), place)
        if recordings is not None:
            more["sound"] = _sound(next(recordings), path.parent, place)
        yield BenchmarkItem(
            task=task,
            id=f"{split}-{number:05d}",
            place=place,
            kind=kind,
            text=row["prompt"],
            part=_part(split, row),
            **more,
        )


def _part(split: str, row: dict) -> str:
    """Return the split, if the task has several. For bbh, return the puzzle type, the prefix of its ids."""
    if "id" in row:
        return re.sub(r"[-_ ]?\d+$", "", row["id"])
    return "" if split == "test" else split


def _choice(reference: str, task: str, place: str) -> tuple[str, tuple[str, ...]]:
    """Return the correct choice and all choices."""
    given = reference.strip().strip("()[].").lower()
    choices = ("yes", "no") if given in ("yes", "no") else LETTERS[:2] if task == "bbh" else LETTERS
    right = next((choice for choice in choices if choice.lower() == given), None)
    if right is None:
        allowed = "yes, no, (A), (B)" if task == "bbh" else ", ".join(LETTERS)
        raise InputError(f"{place}: field 'reference' is {reference!r}; allowed: {allowed}")
    return right, choices


def _instructions(ids: list[str], arguments: object, place: str) -> tuple[Instruction, ...]:
    given = parse_json(arguments, place) if isinstance(arguments, str) else arguments
    if not isinstance(given, list) or len(given) != len(ids) or not ids:
        raise InputError(f"{place}: field 'kwargs' must have an entry for each of the {len(ids)} instructions")
    made = []
    for name, one in zip(ids, given, strict=True):
        # A struct column has a field for each argument of every instruction.
        own = {key: value for key, value in (one or {}).items() if value is not None}
        instruction = Instruction(name, own)
        if (wrong := instruction_problem(instruction)) is not None:
            raise InputError(f"{place}: {wrong}")
        made.append(instruction)
    return tuple(made)


def _sound(value: object, folder: Path, place: str) -> ItemAudio:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return ItemAudio(place=place, content=value["bytes"])
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        try:
            return ItemAudio(place=place, path=resolve_within(folder, value["path"]))
        except InputError as error:
            raise InputError(f"{place}: field 'audio': {error}") from error
    raise InputError(f"{place}: field 'audio' must have 'bytes' or 'path', got {type(value).__name__}")


def _column(path: Path, name: str) -> Iterator[Any]:
    """Yield the values of a column, in batches of bounded size."""
    try:
        with pq.ParquetFile(path) as file:
            if name not in file.schema_arrow.names:
                raise InputError(f"{path} has no column {name!r}")
            for batch in file.iter_batches(AT_ONCE, columns=[name]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a valid Parquet file: {error}") from error
