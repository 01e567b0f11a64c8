"""The replies that a run recorded, as candidates for preference pairs."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from controller.pairing import Candidate
from controller.preference import DEMONSTRATION
from controller.scored import Scored
from speech.errors import InputError
from speech.records import Finish, Prompt

COLUMNS = ("prompt_id", "index", "worker", "finish", "defect", "token_ids", "total", "scores", "missing")
"""What is read of a run's replies; other columns may come and go."""


def _replies(directory: Path) -> dict[int, Path]:
    found = (directory / "replies").glob("*.parquet")
    return dict(sorted((int(path.stem), path) for path in found if path.stem.isdigit()))


def chosen_iterations(directory: Path, wanted: str | None) -> list[int]:
    """The recorded iterations that are wanted, "7" or "1-40" (None: all), at least one. Raises InputError."""
    recorded = list(_replies(directory))
    if not recorded:
        raise InputError(f"{directory / 'replies'} has no replies (yet)")
    if wanted is None:
        return recorded
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", wanted)
    if not match:
        raise InputError(f"--iterations: {wanted!r} is not a number or a range such as 1-40")
    first, last = int(match[1]), int(match[2] or match[1])
    chosen = [number for number in recorded if first <= number <= last]
    if not chosen:
        raise InputError(
            f"--iterations: {directory} has replies of the iterations {recorded[0]} to {recorded[-1]}, none in {wanted}"
        )
    return chosen


def read_run(
    directory: Path, iterations: Sequence[int], prompts: Mapping[str, Prompt], source: str, score: str
) -> Iterator[Scored]:
    """The recorded replies of a run, a prompt of an iteration at a time, in their recorded order.

    prompts: the training data by id, which lie in the file `source`. score: the name of the score that decides. Raises
    InputError when a reply's prompt is not among them.
    """
    paths = _replies(directory)
    for iteration in iterations:
        path = paths[iteration]
        for prompt_id, rows in _groups(_rows(path)):
            if prompt_id not in prompts:
                raise InputError(
                    f"{path} has replies to the prompt {prompt_id!r}, which {source} does not have; "
                    "data.prompts must be the file that the run was trained with"
                )
            unfit = Counter(reason for row in rows if (reason := _unfit(row)))
            yield Scored(
                prompt_id=prompt_id,
                prompt_ids=prompts[prompt_id].token_ids,
                origin=f"run {directory.resolve().name} iteration {iteration} replies",
                candidates=[_candidate(row, score) for row in rows if not _unfit(row)],
                unfit=unfit,
                names=frozenset(name for row in rows for name in [*dict(row["scores"]), *dict(row["missing"])]),
            )


def _groups(rows: Iterable[dict]) -> list[tuple[str, list[dict]]]:
    """Rows by prompt. Demonstrations that were rated are no samples; a prompt that was dealt twice, at the end of an
    epoch and at the start of the next, is two groups."""
    groups: list[tuple[str, list[dict]]] = []
    latest: dict[str, list[dict]] = {}
    for row in rows:
        if row["worker"] == DEMONSTRATION:
            continue
        own = latest.get(row["prompt_id"])
        if own is None or row["index"] <= own[-1]["index"]:
            own = latest[row["prompt_id"]] = []
            groups.append((row["prompt_id"], own))
        own.append(row)
    return groups


def _rows(path: Path) -> list[dict]:
    try:
        # partitioning=None: a "key=value" in the path of the run is no column.
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    for name in COLUMNS:
        if name not in table.column_names:
            raise InputError(f"{path} has no column {name!r}; expected {', '.join(COLUMNS)}")
    return table.select(list(COLUMNS)).to_pylist()


def _unfit(row: dict) -> str | None:
    if row["finish"] != Finish.STOP:
        return "not finished"
    return None if row["defect"] is None else "malformed"


def _candidate(row: dict, score: str) -> Candidate:
    scores = {name: number for name, number in [*row["scores"], ("total", row["total"])] if number is not None}
    return Candidate(
        label=str(row["index"]),
        ids=np.asarray(row["token_ids"], dtype=np.int32),
        score=scores.get(score),
        scores=scores,
    )
