"""Input of a diagnosis: records of a run, score groups, and replies as passages to score again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from common.errors import InputError
from configs.load import load_config
from configs.schema import Config
from configs.validate import data_paths, data_sources, source_name
from data.dataset import DatasetIndex
from data.open_dataset import open_demonstrations, open_prompts
from data.sampler import DEMONSTRATIONS, build_sampler
from evaluation.diagnosis.gradient_geometry import GradientBatch
from observability.run_directory import read_replies, run_directory
from speech.families import Family, family
from speech.grammar import allowed_masks, token_kinds
from speech.types import Prompt, ReplyOrigin
from speech.vocabulary import Vocabulary

SCORES = ("iteration", "prompt_id", "index", "worker", "total", "scores", "missing")
"""Record columns without the large token columns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredGroup:
    """Scores of the replies to one prompt in one iteration."""

    iteration: int
    prompt_id: str
    scores: dict[str, np.ndarray]
    """float64 [G] by rater and for `total`. NaN for a missing score."""

    def present(self, rater: str) -> np.ndarray:
        """Return the scores that exist, float64 [≤ G]."""
        values = self.scores[rater]
        return values[~np.isnan(values)]


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagnosisItem:
    """Recorded reply or demonstration."""

    passage: GradientBatch
    channels: np.ndarray
    """int8 [T], values of `Channel`."""
    group: int
    """Group number, shared by all replies to one prompt in one iteration."""
    iteration: int | None = None
    """Iteration of a reply. None for a demonstration, like the next three fields."""
    total: float | None = None
    """Total score. Also None if missing."""
    logps: np.ndarray | None = None
    """float32 [T], log-probabilities from the sampler."""
    weight_version: int | None = None


@dataclass(frozen=True)
class RunFiles:
    """Directory of a run with its configuration."""

    directory: Path
    config: Config

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a run. Raises InputError if `directory` is not a run or its configuration is unreadable."""
        directory = run_directory(directory)
        return cls(directory, load_config(directory / "config.yaml", []))

    @cached_property
    def iterations(self) -> list[int]:
        """Return the iterations with recorded replies, in order."""
        return sorted(int(p.stem) for p in (self.directory / "replies").glob("*.parquet") if p.stem.isdigit())

    @cached_property
    def checkpoints(self) -> dict[int, Path]:
        """Return checkpoints with weights, by iteration."""
        found = sorted((self.directory / "checkpoints").glob("*/config.json"))
        return {int(path.parent.name): path.parent for path in found if path.parent.name.isdigit()}

    @cached_property
    def family(self) -> Family:
        return family(self.config.model.family)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary. Raises InputError if the start model was moved."""
        return Vocabulary.from_checkpoint(Path(self.config.model.path), self.family.tokens)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Return int8 [vocabulary], the `speech.grammar.TokenKind` of every id."""
        return token_kinds(self.vocabulary)

    @cached_property
    def prompts(self) -> Mapping[str, Prompt]:
        """Return the training prompts by id."""
        return DatasetIndex(open_prompts(data_paths(self.config.data.prompts), self.vocabulary), "id")

    @property
    def constrained(self) -> bool:
        """Return whether sampling was constrained to the interleave structure (`controller.inputs.is_constrained`)."""
        structure = self.config.rollout.constrained_decoding
        return structure == "on" or (structure == "auto" and not self.family.follows_pattern)

    @cached_property
    def groups(self) -> list[ScoredGroup]:
        """Return all recorded score groups. Empty if no iteration finished."""
        rows = [
            group
            for number in self.iterations
            for group in _grouped(
                row for row in self._rows(number, SCORES) if row["worker"] != ReplyOrigin.DEMONSTRATION
            )
        ]
        names = dict.fromkeys(
            n for group in rows for row in group for n in (*dict(row["scores"]), *dict(row["missing"]))
        )
        return [
            ScoredGroup(
                iteration=group[0]["iteration"],
                prompt_id=group[0]["prompt_id"],
                scores={name: _numbers([dict(row["scores"]).get(name) for row in group]) for name in names}
                | {"total": _numbers([row["total"] for row in group])},
            )
            for group in rows
        ]

    def replies(self, numbers: Iterable[int], limit: int) -> list[DiagnosisItem]:
        """Return complete groups of the iterations, in the given order, up to `limit` replies.

        Raises InputError if prompts or replies do not match the run's data.
        """
        items: list[DiagnosisItem] = []
        for count, (iteration, group) in enumerate(
            (number, group) for number in numbers for group in self._sampled(number)
        ):
            if items and len(items) + len(group) > limit:
                break
            items += [self._item(row, iteration, count) for row in group]
        return items

    def demonstrations(self, limit: int) -> list[DiagnosisItem]:
        """Return the first demonstrations of the run in training order, each at most once."""
        data = self.config.data.sft
        found = open_demonstrations(data_paths(data), self.vocabulary)
        weights = [source.weight for source in data_sources(data)]
        order = build_sampler(found.counts, weights, self.config.run.seed, DEMONSTRATIONS).take(min(limit, len(found)))
        return [
            DiagnosisItem(
                passage=GradientBatch(
                    prompt_ids=one.prompt_ids,
                    reply_ids=one.reply_ids,
                    features=one.features,
                    slot=self.vocabulary.slot,
                ),
                channels=self.vocabulary.channels(one.reply_ids),
                group=place,
            )
            for place, one in enumerate(found[index] for index in dict.fromkeys(order))
        ]

    def _rows(self, iteration: int, columns: Sequence[str] | None = None) -> list[dict]:
        table = read_replies(self.directory, iteration)
        return (table if columns is None else table.select(columns)).to_pylist()

    def _sampled(self, iteration: int) -> Iterator[list[dict]]:
        """Yield groups of replies sampled by the run, not read from a file."""
        return _grouped(row for row in self._rows(iteration) if row["weight_version"] >= 0 and row["token_ids"])

    def _item(self, row: dict, iteration: int, group: int) -> DiagnosisItem:
        if row["prompt_id"] not in self.prompts:
            raise InputError(
                f"{source_name(self.config.data.prompts)} has no prompt {row['prompt_id']!r}, "
                f"which iteration {iteration} "
                "replied to"
            )
        prompt, ids = self.prompts[row["prompt_id"]], np.asarray(row["token_ids"], dtype=np.int32)
        allowed = None
        if self.constrained:
            try:
                allowed = allowed_masks(ids, self.family.interleave, self.kinds)
            except (ValueError, IndexError) as error:
                raise InputError(
                    f"iteration {iteration}, prompt {row['prompt_id']}, reply {row['index']}: the reply violates the "
                    f"structure of family {self.family.name}, but sampling was constrained to it: {error}"
                ) from error
        return DiagnosisItem(
            passage=GradientBatch(
                prompt_ids=prompt.token_ids,
                features=prompt.features,
                slot=self.vocabulary.slot,
                reply_ids=ids,
                temperature=self.config.rollout.temperature,
                allowed=allowed,
            ),
            channels=self.vocabulary.channels(ids),
            group=group,
            iteration=iteration,
            total=row["total"],
            logps=_numbers(row["logps"]).astype(np.float32),
            weight_version=row["weight_version"],
        )


def describe_run(items: Sequence[DiagnosisItem]) -> str:
    """Describe the items in words."""
    numbers = sorted({item.iteration for item in items if item.iteration is not None})
    if not numbers:
        return "demonstrations"
    where = f"iteration {numbers[0]}" if len(numbers) == 1 else f"iterations {numbers[0]} to {numbers[-1]}"
    return f"replies of {where}"


def _grouped(rows: Iterable[dict]) -> Iterator[list[dict]]:
    """Yield rows by group, in recorded order. The reply index restarts with every group."""
    group: list[dict] = []
    for row in rows:
        if group and (row["prompt_id"] != group[0]["prompt_id"] or row["index"] <= group[-1]["index"]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """Return float64 with NaN for None."""
    return np.asarray(values, dtype=np.float64)
