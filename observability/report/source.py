"""What a report reads: the records of a run as they are now, and the data that the run was made of."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from common.errors import InputError
from configs.load import load_config
from configs.schema import Config
from configs.validate import data_paths
from data.dataset import DatasetIndex
from data.open_dataset import open_demonstrations, open_prompts
from observability import run_directory
from observability.run_directory import RunLock
from speech.families import family
from speech.types import Demonstration, Prompt
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, eq=False)
class RunAssets:
    """What a run was made of, as far as it is still where the configuration says."""

    vocabulary: Vocabulary | None = None
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    """Of training and of every evaluation set, by id."""
    demonstrations: Mapping[str, Demonstration] = field(default_factory=dict)
    """By the prompt's id; the first of several."""
    lacks: list[str] = field(default_factory=list)
    """What is not there any more, a sentence each."""


@dataclass(frozen=True, eq=False)
class ReportSource:
    """The directory of a run. Everything that the run may still change is read anew at every call."""

    directory: Path
    config: Config

    @classmethod
    def open(cls, run: Path) -> Self:
        """Raises InputError when this is no run, or its configuration cannot be read."""
        directory = run_directory.run_directory(run)
        return cls(directory, load_config(directory / "config.yaml", []))

    def renewed(self) -> Self:
        """With the settings that hold now, as a run that goes on may have others; itself, where they are the same."""
        config = load_config(self.directory / "config.yaml", [])
        return self if config == self.config else type(self)(self.directory, config)

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def worked_on(self) -> bool:
        """Whether a job works on this run now."""
        return RunLock.held(self.directory)

    def iterations(self) -> pa.Table | None:
        """None before the first."""
        return _absent(run_directory.read_iterations, self.directory)

    def summary(self) -> dict | None:
        """None while the run goes on, and when it was killed."""
        return _absent(run_directory.read_summary, self.directory)

    def events(self) -> list[dict]:
        return run_directory.read_events(self.directory)

    def evaluation(self, when: str, name: str) -> pa.Table | None:
        return _absent(run_directory.read_evaluation, self.directory, when, name)

    def numbered(self, folder: str, newest: int | None = None) -> dict[int, pa.Table]:
        """The tables of "replies" or "listening" by iteration, newest first; of the newest so many iterations."""
        reader = run_directory.read_listening if folder == "listening" else run_directory.read_replies
        numbers = run_directory.numbered(self.directory, folder)[::-1][:newest]
        found = {number: _absent(reader, self.directory, number) for number in numbers}
        return {number: table for number, table in found.items() if table is not None}

    def state_of_files(self) -> tuple:
        """Differs whenever a report would say something else."""
        files = [
            self.directory / name for name in ("config.yaml", "iterations.parquet", "events.jsonl", "summary.json")
        ]
        for folder in ("evaluations/before", "evaluations/after", "listening"):
            files += sorted((self.directory / folder).glob("*.parquet"))
        return (self.worked_on, *((str(file), _stamp(file)) for file in files))

    @cached_property
    def world(self) -> RunAssets:
        data, lacks = self.config.data, list[str]()
        try:
            vocabulary = Vocabulary.from_checkpoint(
                Path(self.config.model.path), family(self.config.model.family).tokens
            )
        except InputError as error:
            return RunAssets(lacks=[f"Without the tokenizer there is no sound and no question: {error}."])
        prompts: list[Any] = []
        for path in (*data_paths(data.prompts), *map(Path, data.validation.values())):
            try:
                prompts.append(DatasetIndex(open_prompts([path], vocabulary), "id"))
            except InputError as error:
                lacks.append(f"Questions are missing: {error}.")
        demonstrations: Mapping[str, Demonstration] = {}
        try:
            demonstrations = DatasetIndex(open_demonstrations(data_paths(data.sft), vocabulary), "prompt_id")
        except InputError as error:
            lacks.append(f"Demonstrations are missing: {error}.")
        return RunAssets(
            vocabulary=vocabulary, prompts=ChainMap(*prompts[::-1]), demonstrations=demonstrations, lacks=lacks
        )


def _absent(reader: Callable[..., Any], *arguments: object) -> Any:
    """None where there is nothing to read (yet)."""
    try:
        return reader(*arguments)
    except InputError:
        return None


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
