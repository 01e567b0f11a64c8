"""Agreement of judges with human scores.

Training uses the ranking within a prompt (for advantages) and the variance within a prompt (for λ, method §2). A
correlation over all replies also reflects prompt difficulty. It may be high for a judge that cannot rank two replies
to one prompt.

Ratings are read from Parquet, JSONL, CSV or TSV, one row per reply: prompt_id, reply_id, the human score (the mean of
several), and one column per judge. An empty field, null or NaN is a missing score and stays missing.
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from common.errors import InputError
from common.files import check_exists, find_duplicate, parse_json, read_text
from controller.mix_ratio import MixRatioConfig
from evaluation.diagnosis.rater_agreement import SAME, agreement, variance
from evaluation.diagnosis.run_data import ScoredGroup

NAMES = ("prompt_id", "reply_id")


ENDINGS = (".parquet", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings:
    """Human and judge scores of N replies, sorted by prompt."""

    prompts: np.ndarray
    """int64 [N], prompt index."""
    human: np.ndarray
    """float64 [N], human score; NaN if missing."""
    judges: dict[str, np.ndarray]
    """Scores by judge, in column order, in the format of `human`."""
    passed_over: tuple[str, ...]
    """Columns without numbers, ignored."""


def read_ratings(path: Path, human: str, judges: Sequence[str] | None, lowest: float, highest: float) -> Ratings:
    """Read ratings from a file. Raises InputError with file, row and column.

    Args:
        human: Column of human scores.
        judges: Columns of judge scores. None: all other numeric columns.
        lowest: Bottom of the scale.
        highest: Top of the scale.
    """
    if not check_exists(path):
        raise InputError(f"{path} does not exist")
    if path.suffix not in ENDINGS:
        raise InputError(f"{path} has an unsupported suffix; use one of {', '.join(ENDINGS)}")
    rows = list(_rows(path))
    if not rows:
        raise InputError(f"{path} has no rows")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    wanted = _wanted(path, rows, columns, human, judges)
    seen: dict[tuple[str, str], str] = {}
    for place, row in rows:
        key = tuple(_name(row, name, place) for name in NAMES)
        if seen.setdefault((key[0], key[1]), place) != place:
            raise InputError(
                f"{place}: reply {key[1]!r} to prompt {key[0]!r} is already in {seen[key[0], key[1]]}; keep one "
                "row per reply, with the mean of several human scores"
            )
    numbers: dict[str, int] = {}
    order = [numbers.setdefault(prompt, len(numbers)) for prompt, _ in seen]
    turns = np.argsort(np.asarray(order, dtype=np.int64), kind="stable")
    scores = {
        name: np.asarray([_score(row.get(name), place, name, lowest, highest) for place, row in rows])[turns]
        for name in [human, *wanted]
    }
    return Ratings(
        prompts=np.asarray(order, dtype=np.int64)[turns],
        human=scores.pop(human),
        judges=scores,
        passed_over=tuple(name for name in columns if name not in (*NAMES, human, *wanted)),
    )


def _wanted(
    path: Path, rows: list[tuple[str, dict]], columns: list[str], human: str, judges: Sequence[str] | None
) -> list[str]:
    """Return the judge columns."""
    for name in (*NAMES, human, *(judges or ())):
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}; columns: {', '.join(columns)}")
    if judges is not None:
        if (twice := find_duplicate(judges)) is not None or human in judges or set(NAMES) & set(judges):
            wrong = twice or human
            raise InputError(f"--judges: {wrong!r} is a duplicate or not a judge column; list each judge once")
        return list(judges)
    found = [name for name in columns if name not in (*NAMES, human) and _holds_numbers(rows, name)]
    if not found:
        raise InputError(f"{path} has no column of judge scores besides {', '.join((*NAMES, human))}; add one")
    return found


def _holds_numbers(rows: list[tuple[str, dict]], name: str) -> bool:
    """Return whether the first present value is a number. A later non-number is then an error."""
    first = next((row[name] for _, row in rows if not _missing(row.get(name))), None)
    return first is not None and _number(first) is not None


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row)."""
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{path} is not a valid Parquet file: {error}") from error
        if (twice := find_duplicate(table.column_names)) is not None:
            raise InputError(f"{path} has two columns {twice!r}; column names must be unique")
        yield from ((f"{path} row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))
    elif path.suffix == ".jsonl":
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                row = parse_json(line, f"{path} line {number}")
                if not isinstance(row, dict):
                    raise InputError(f"{path} line {number} is not a JSON object")
                yield f"{path} line {number}", row
    else:
        yield from _separated(path, "," if path.suffix == ".csv" else "\t")


def _separated(path: Path, separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(read_text(path).removeprefix("\ufeff").splitlines(), delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        if (twice := find_duplicate(names)) is not None:
            raise InputError(f"{path} has two columns {twice!r}; column names must be unique")
        for values in reader:
            place = f"{path} line {reader.line_num}"
            if values and len(values) != len(names):
                raise InputError(f"{place} has {len(values)} fields; expected {len(names)}, as in the header")
            if values:
                yield place, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: {error}") from error


def _name(row: dict, name: str, place: str) -> str:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"{place}: column {name!r} holds {value!r}; expected a string or an integer")
    return str(value)


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _number(value: object) -> float | None:
    """Return the value as a float, or None if it is not a number."""
    try:
        return None if isinstance(value, bool) or not isinstance(value, str | int | float) else float(value)
    except (ValueError, OverflowError):
        return None


def _score(value: object, place: str, name: str, lowest: float, highest: float) -> float:
    if _missing(value):
        return math.nan
    number = _number(value)
    if number is not None and math.isnan(number):  # "nan" in a text file
        return math.nan
    if number is None or not lowest <= number <= highest:
        raise InputError(
            f"{place}: column {name!r} holds {value!r}; expected a number from {lowest:g} to {highest:g} (--lowest, "
            "--highest), or an empty field"
        )
    return number


NEAR = 1.0
"""Maximum distance, in points of the scale, that counts as near."""


ROUNDING = 1e-9


HUMAN = "human"


JUDGE = "judge"


@dataclass(frozen=True, kw_only=True)
class ScoreSpread:
    """Spread of scores within a prompt."""

    variance: float | None
    """Mean population variance over prompts with at least two scores. None without such a prompt."""
    alike: float | None
    """Share of these prompts with equal scores for all replies."""
    raw: float | None
    """Unsmoothed λ from these scores: mean of λ_max · g · v (method §2)."""
    prompts: int


@dataclass(frozen=True, kw_only=True)
class JudgeAgreement:
    """Judge scores compared with human scores, over replies with both."""

    judge: str
    both: int
    missing: int
    """Replies with a human score but no judge score."""
    pearson: float | None
    """Correlation over all replies. All correlations are None if either side is constant."""
    spearman: float | None
    within_spearman: float | None
    """Mean of Spearman's ρ within a prompt, over prompts in which both vary."""
    within_spearman_margin: float | None
    """Half width of the 95 % interval of that mean. None with fewer than two prompts."""
    within_kendall: float | None
    """Mean of Kendall's τ-b, over the same prompts."""
    within_prompts: int
    """Number of prompts in these means."""
    unused: dict[str, int]
    """Number of excluded prompts, by reason."""
    bias: float | None
    """Mean of judge − human, in points."""
    near: float | None
    """Share of replies whose scores differ by at most `NEAR`."""
    human: ScoreSpread
    """Spread of human scores, over replies with both scores."""
    own: ScoreSpread
    """Spread of judge scores, over the same replies."""


def compare_judges(ratings: Ratings, judge: str, settings: MixRatioConfig) -> JudgeAgreement:
    """Compare one judge with the human scores."""
    human, own = ratings.human, ratings.judges[judge]
    both = ~np.isnan(human) & ~np.isnan(own)
    groups = _groups(ratings, {HUMAN: np.where(both, human, np.nan), JUDGE: np.where(both, own, np.nan)})
    within = agreement(groups, JUDGE, HUMAN)
    difference = own[both] - human[both]
    return JudgeAgreement(
        judge=judge,
        both=int(both.sum()),
        missing=int((~np.isnan(human) & np.isnan(own)).sum()),
        pearson=_correlation(stats.pearsonr, human[both], own[both]),
        spearman=_correlation(stats.spearmanr, human[both], own[both]),
        within_spearman=within.spearman,
        within_spearman_margin=within.spearman_margin,
        within_kendall=within.kendall,
        within_prompts=within.groups,
        unused={_reason(reason): count for reason, count in within.unused.items()},
        bias=float(difference.mean()) if len(difference) else None,
        near=float((np.abs(difference) <= NEAR + ROUNDING).mean()) if len(difference) else None,
        human=_spread(groups, HUMAN, settings),
        own=_spread(groups, JUDGE, settings),
    )


def human_agreement(ratings: Ratings, settings: MixRatioConfig) -> ScoreSpread:
    """Return the spread of human scores over all replies with one."""
    return _spread(_groups(ratings, {HUMAN: ratings.human}), HUMAN, settings)


def _groups(ratings: Ratings, scores: dict[str, np.ndarray]) -> list[ScoredGroup]:
    ends = np.flatnonzero(np.diff(ratings.prompts)) + 1
    parts = {name: np.split(values, ends) for name, values in scores.items()}
    return [
        ScoredGroup(iteration=0, prompt_id=str(place), scores={name: parts[name][place] for name in parts})
        for place in range(len(ends) + 1)
    ]


def _spread(groups: list[ScoredGroup], name: str, settings: MixRatioConfig) -> ScoreSpread:
    found = variance(groups, name, settings)
    return ScoreSpread(
        variance=found["variance"], alike=found["constant"], raw=found["alone"], prompts=int(found["groups"])
    )


def _correlation(of: Callable, human: np.ndarray, own: np.ndarray) -> float | None:
    if len(human) < 2 or np.var(human) < SAME or np.var(own) < SAME:
        return None
    return float(of(human, own)[0])


def _reason(reason: str) -> str:
    """Reword a reason for a judge and human scores."""
    return reason.replace("rater constant", "judge constant").replace("reference constant", "people constant")
