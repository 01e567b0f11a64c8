"""Benchmark items, in one form for every suite."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from common.errors import InputError
from evaluation.benchmarks.ifeval import Instruction
from speech.audio import Waveform


class TaskKind(StrEnum):
    """Scoring method of a reply."""

    CHOICE = "choice"
    """The reply names the choice that is the reference."""
    ANSWER = "answer"
    """The reply contains a reference, or a judge accepts it."""
    INSTRUCTIONS = "instructions"
    """The reply follows every instruction, checked by program."""
    REFUSAL = "refusal"
    """The reply refuses the request."""
    JUDGED = "judged"
    """A judge scores the content."""
    STYLE = "style"
    """A judge scores the delivery, from the audio alone."""


SHARES = (TaskKind.CHOICE, TaskKind.ANSWER, TaskKind.INSTRUCTIONS, TaskKind.REFUSAL)
"""Kinds that score a reply 0 or 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemAudio:
    """Undecoded recording: a file path or the bytes of a file."""

    place: str
    """File and row, for error messages."""
    path: Path | None = None
    content: bytes | None = None

    def load(self) -> Waveform:
        """Decode the recording. Raises InputError if it cannot be read."""
        try:
            return Waveform.read(self.path if self.path is not None else io.BytesIO(self.content or b""))
        except (OSError, RuntimeError, ValueError) as error:  # libsndfile's own error is a RuntimeError
            raise InputError(f"{self.place}: the question's audio cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkItem:
    """One question and the data to score its reply."""

    task: str
    id: str
    """Unique within the task."""
    place: str
    """Source file and row."""
    kind: TaskKind
    text: str
    """Text of the question."""
    references: tuple[str, ...] = ()
    """Accepted answers. CHOICE has exactly one, which is among the choices."""
    choices: tuple[str, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    part: str = ""
    """Subset of the task, such as a region, domain or ability. Empty if the task has none."""
    language: str = ""
    """Language, in suites that separate languages."""
    sound: ItemAudio | None = None
    """The spoken question. None if the caller did not request audio."""

    @property
    def name(self) -> str:
        return f"{self.task}/{self.id}"

    def facts(self) -> dict[str, str]:
        """Return the fields passed to a judge, without the empty ones."""
        told = {"task": self.task, "part": self.part, "reference": "; ".join(self.references)}
        if self.references:
            told["answer"] = self.references[0]
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True)
class TaskFilter:
    """Selects items of a suite."""

    tasks: tuple[str, ...] = ()
    """Task names. Empty: all tasks in the data."""
    limit: int = 0
    """Maximum items per task, from the start. 0: all."""

    def of(self, items: Iterable[BenchmarkItem]) -> Iterator[BenchmarkItem]:
        """Yield the selected items. Raises InputError for duplicate ids and for an empty suite."""
        seen: dict[str, str] = {}
        taken: Counter[str] = Counter()
        for item in items:
            if (first := seen.setdefault(item.name, item.place)) != item.place:
                raise InputError(f"{item.place}: the id {item.name!r} is already used at {first}; ids must be unique")
            if not self.limit or taken[item.task] < self.limit:
                taken[item.task] += 1
                yield item
        if not seen:
            raise InputError("the suite has no items of the selected tasks")

    def wants(self, task: str, known: Iterable[str]) -> bool:
        """Return whether `task` is selected. Raises InputError if a selection is not in `known`, the suite's tasks."""
        for name in self.tasks:
            if name not in known:
                raise InputError(f"--tasks: {name!r} is not a task of this suite; tasks: {', '.join(known)}")
        return not self.tasks or task in self.tasks
