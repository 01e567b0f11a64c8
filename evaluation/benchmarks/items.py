"""A question of a suite, whatever suite it comes from."""

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
    """How a reply is scored."""

    CHOICE = "choice"
    """One of the choices is named, and it is the reference."""
    ANSWER = "answer"
    """A reference is in the reply, or a judge says that it is."""
    INSTRUCTIONS = "instructions"
    """Every instruction is followed, as far as a program can see."""
    REFUSAL = "refusal"
    """What is asked for is refused."""
    JUDGED = "judged"
    """A judge's score of what is said."""
    STYLE = "style"
    """A judge's score of how it is said: of the sound alone."""


SHARES = (TaskKind.CHOICE, TaskKind.ANSWER, TaskKind.INSTRUCTIONS, TaskKind.REFUSAL)
"""Kinds whose score of a reply is 0 or 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemAudio:
    """A recording that is not decoded yet: a file, or the content of one."""

    place: str
    """File and row that name it, for errors."""
    path: Path | None = None
    content: bytes | None = None

    def load(self) -> Waveform:
        """Raises InputError when it cannot be read."""
        try:
            return Waveform.read(self.path if self.path is not None else io.BytesIO(self.content or b""))
        except (OSError, RuntimeError, ValueError) as error:  # libsndfile's own error is a RuntimeError
            raise InputError(f"{self.place}: the question's sound cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkItem:
    """A question with what its scoring needs."""

    task: str
    id: str
    """Differs from that of every other item of the task."""
    place: str
    """File and row that it comes from."""
    kind: TaskKind
    text: str
    """The question in words."""
    references: tuple[str, ...] = ()
    """Right answers, any of which will do; of CHOICE one, which is among the choices."""
    choices: tuple[str, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    part: str = ""
    """What of the task it belongs to: a region, a domain, an ability; empty where there are none."""
    language: str = ""
    """Where the suite keeps languages apart."""
    sound: ItemAudio | None = None
    """The question as it is spoken; None where it was not asked for."""

    @property
    def name(self) -> str:
        return f"{self.task}/{self.id}"

    def facts(self) -> dict[str, str]:
        """What a judge is told."""
        told = {"task": self.task, "part": self.part, "reference": "; ".join(self.references)}
        if self.references:
            told["answer"] = self.references[0]
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True)
class TaskFilter:
    """Which of a suite's items are wanted."""

    tasks: tuple[str, ...] = ()
    """By name; none: all that are there."""
    limit: int = 0
    """Of each task, the first so many; 0: all."""

    def of(self, items: Iterable[BenchmarkItem]) -> Iterator[BenchmarkItem]:
        """Raises InputError for two items of one name, and when nothing is left."""
        seen: dict[str, str] = {}
        taken: Counter[str] = Counter()
        for item in items:
            if (first := seen.setdefault(item.name, item.place)) != item.place:
                raise InputError(f"{item.place}: the id of {item.name!r} is that of {first}; ids must differ")
            if not self.limit or taken[item.task] < self.limit:
                taken[item.task] += 1
                yield item
        if not seen:
            raise InputError("the suite has no items of these tasks")

    def wants(self, task: str, known: Iterable[str]) -> bool:
        """known: every task of the suite. Raises InputError for a wanted one that is not among them."""
        for name in self.tasks:
            if name not in known:
                raise InputError(f"--tasks: {name!r} is no task of this suite; tasks: {', '.join(known)}")
        return not self.tasks or task in self.tasks
