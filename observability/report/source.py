"""Input of a report: the current records of a run, and the data that the run uses."""

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
    """Data of a run, as far as it still exists at the configured paths."""

    vocabulary: Vocabulary | None = None
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    """Training and evaluation prompts by id."""
    demonstrations: Mapping[str, Demonstration] = field(default_factory=dict)
    """First demonstration of each prompt, by prompt id."""
    lacks: list[str] = field(default_factory=list)
    """Messages about missing data."""


@dataclass(frozen=True, eq=False)
class ReportSource:
    """Run directory of a report. Records that may change are read on every call."""

    directory: Path
    config: Config

    @classmethod
    def open(cls, run: Path) -> Self:
        """Open a run. Raise InputError if it is not a run or its configuration is invalid."""
        directory = run_directory.run_directory(run)
        return cls(directory, load_config(directory / "config.yaml", []))

    def reload(self) -> Self:
        """Return the source with the current configuration, or itself if that is unchanged."""
        config = load_config(self.directory / "config.yaml", [])
        return self if config == self.config else type(self)(self.directory, config)

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def is_active(self) -> bool:
        """True if a job is running on this run."""
        return RunLock.is_held(self.directory)

    def iterations(self) -> pa.Table | None:
        """Return the table of iterations, or None before the first."""
        return _absent(run_directory.read_iterations, self.directory)

    def summary(self) -> dict | None:
        """Return the summary, or None if the run has not finished."""
        return _absent(run_directory.read_summary, self.directory)

    def events(self) -> list[dict]:
        return run_directory.read_events(self.directory)

    def evaluation(self, when: str, name: str) -> pa.Table | None:
        return _absent(run_directory.read_evaluation, self.directory, when, name)

    def numbered(self, folder: str, newest: int | None = None) -> dict[int, pa.Table]:
        """Return the tables of "replies" or "listening" by iteration, newest first; at most `newest` of them."""
        reader = run_directory.read_listening if folder == "listening" else run_directory.read_replies
        numbers = run_directory.numbered(self.directory, folder)[::-1][:newest]
        found = {number: _absent(reader, self.directory, number) for number in numbers}
        return {number: table for number, table in found.items() if table is not None}

    def state_of_files(self) -> tuple:
        """Return a value that changes whenever the report would change."""
        files = [
            self.directory / name for name in ("config.yaml", "iterations.parquet", "events.jsonl", "summary.json")
        ]
        for folder in ("evaluations/before", "evaluations/after", "listening"):
            files += sorted((self.directory / folder).glob("*.parquet"))
        return (self.is_active, *((str(file), _stamp(file)) for file in files))

    @cached_property
    def world(self) -> RunAssets:
        data, lacks = self.config.data, list[str]()
        try:
            vocabulary = Vocabulary.from_checkpoint(
                Path(self.config.model.path), family(self.config.model.family).tokens
            )
        except InputError as error:
            return RunAssets(lacks=[f"The tokenizer is missing, so audio and prompts are not available: {error}."])
        prompts: list[Any] = []
        for path in (*data_paths(data.prompts), *map(Path, data.validation.values())):
            try:
                prompts.append(DatasetIndex(open_prompts([path], vocabulary), "id"))
            except InputError as error:
                lacks.append(f"Prompts are missing: {error}.")
        demonstrations: Mapping[str, Demonstration] = {}
        try:
            demonstrations = DatasetIndex(open_demonstrations(data_paths(data.sft), vocabulary), "prompt_id")
        except InputError as error:
            lacks.append(f"Demonstrations are missing: {error}.")
        return RunAssets(
            vocabulary=vocabulary, prompts=ChainMap(*prompts[::-1]), demonstrations=demonstrations, lacks=lacks
        )


def _absent(reader: Callable[..., Any], *arguments: object) -> Any:
    """Call a reader; return None if the file does not exist yet."""
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
