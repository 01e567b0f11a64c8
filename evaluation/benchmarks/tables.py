"""Aggregate verdicts into task scores, IQ and EQ. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from common.secrets import hide_secrets
from evaluation.benchmarks.answer_extraction import AnswerVerdict
from evaluation.benchmarks.grading import CHANNELS, GradedItem
from evaluation.benchmarks.items import SHARES, TaskKind
from evaluation.benchmarks.vstyle import weights
from observability.console import format_number
from reward.types import MissingScore

MEASURES = ("strict_prompt", "loose_prompt", "strict_instruction", "loose_instruction")
SUPERSEDED = {"alpacaeval": "alpacaeval_full"}
"""Tasks whose items are a subset of another task's. If both are present, IQ uses only the other."""
COLUMNS = pa.schema(
    [
        *[pa.field(name, pa.string()) for name in ("task", "id", "part", "kind", "question", "references")],
        *[pa.field(name, pa.string()) for name in ("text", "heard", "finish", "defect")],
        pa.field("seconds", pa.float64()),
        *[
            pa.field(f"{channel}_{name}", kind)
            for channel in CHANNELS
            for name, kind in (
                ("score", pa.float64()),
                ("missing", pa.string()),
                ("reason", pa.string()),
                ("parts", pa.map_(pa.string(), pa.float64())),
            )
        ],
    ]
)
"""Schema of SUITE.parquet. A missing score is null; `…_missing` has the reason."""


def summary(assessed: Sequence[GradedItem], highest: float) -> dict[str, Any]:
    """Return `tasks`, and `IQ` or `EQ` as defined in docs/evaluation.md. highest: top of the judge's scale."""
    by_task: dict[str, list[GradedItem]] = {}
    for one in assessed:
        by_task.setdefault(one.item.task, []).append(one)
    tasks = {task: _task(rows, highest) for task, rows in by_task.items()}
    if any(one.item.kind is TaskKind.STYLE for one in assessed):
        return {"tasks": tasks, "EQ": _eq(assessed)}
    return {"tasks": tasks, "IQ": _iq(tasks)}


def rows(assessed: Sequence[GradedItem]) -> pa.Table:
    """Return one row per item, with the columns of `COLUMNS`."""
    made, hide = [], hide_secrets()
    for one in assessed:
        row: dict[str, Any] = {
            "task": one.item.task,
            "id": one.item.id,
            "part": one.item.part,
            "kind": str(one.item.kind),
            "question": one.item.text,
            "references": "; ".join(one.item.references),
            "text": one.text,
            "heard": one.heard,
            "finish": one.finish,
            "defect": one.defect,
            "seconds": one.seconds,
        }
        for channel, verdict in one.verdicts.items():
            lost = verdict.score if isinstance(verdict.score, MissingScore) else None
            row[f"{channel}_score"] = None if lost else verdict.score
            row[f"{channel}_missing"] = hide(lost.reason) if lost else None
            row[f"{channel}_reason"] = hide(verdict.reason)  # a judge may quote a secret
            row[f"{channel}_parts"] = list(verdict.parts.items())
        made.append(row)
    return pa.Table.from_pylist(made, schema=COLUMNS)


def _task(assessed: Sequence[GradedItem], highest: float) -> dict[str, Any]:
    kind = assessed[0].item.kind
    channels = CHANNELS[1:] if kind is TaskKind.STYLE else CHANNELS
    found: dict[str, Any] = {"kind": str(kind), "items": len(assessed)}
    for channel in channels:
        found[channel] = _column([one.verdicts[channel] for one in assessed], kind, highest)
    parts: dict[str, list[GradedItem]] = {}
    for one in assessed:
        if one.item.part:
            parts.setdefault(one.item.part, []).append(one)
    found["parts"] = {
        part: {"items": len(own)}
        | {channel: _column([one.verdicts[channel] for one in own], kind, highest)["score"] for channel in channels}
        for part, own in parts.items()
    }
    return found


def _column(verdicts: Sequence[AnswerVerdict], kind: TaskKind, highest: float) -> dict[str, Any]:
    """Aggregate one channel. `score` is 0..100, or on the judge's scale for STYLE; None if all are missing."""
    missing = Counter(verdict.score.reason for verdict in verdicts if isinstance(verdict.score, MissingScore))
    present = [verdict for verdict in verdicts if not isinstance(verdict.score, MissingScore)]
    values = np.asarray([verdict.score for verdict in present], dtype=float)
    scale = 100.0 if kind in SHARES else 1.0 if kind is TaskKind.STYLE else 100.0 / highest
    column: dict[str, Any] = {
        "score": float(values.mean() * scale) if len(values) else None,
        "standard_error": float(values.std(ddof=1) / np.sqrt(len(values)) * scale) if len(values) > 1 else None,
        "scored": len(values),
        "missing": dict(missing),
    }
    if kind is TaskKind.INSTRUCTIONS and present:
        parts = [verdict.parts for verdict in present]
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        shares = (
            total["strict_prompt"] / len(parts),
            total["loose_prompt"] / len(parts),
            total["strict_followed"] / total["instructions"],
            total["loose_followed"] / total["instructions"],
        )
        column |= {name: 100.0 * value for name, value in zip(MEASURES, shares, strict=True)}
        column["score"] = float(np.mean([column[name] for name in MEASURES]))
    return column


def _iq(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the unweighted mean of task scores by channel, over the tasks with a score."""
    counted = [task for task in tasks if SUPERSEDED.get(task) not in tasks]
    found: dict[str, Any] = {}
    for channel in CHANNELS:
        scores = {task: tasks[task][channel]["score"] for task in counted}
        known = {task: score for task, score in scores.items() if score is not None}
        found[channel] = float(np.mean(list(known.values()))) if known else None
        found[f"{channel}_tasks"] = list(known)
    return found


def _eq(assessed: Sequence[GradedItem]) -> dict[str, Any]:
    """Return the VStyle-weighted mean of ability scores per language, and the unweighted mean over languages."""
    scores: dict[str, dict[str, list[float]]] = {}
    for one in assessed:
        score = one.verdicts["speech"].score
        own = scores.setdefault(one.item.language, {})
        if not isinstance(score, MissingScore):
            own.setdefault(one.item.part, []).append(score)
    by_language = {}
    for language, own in scores.items():
        parts = tuple(own)
        means = [float(np.mean(own[part])) for part in parts]
        by_language[language] = float(np.average(means, weights=weights(parts))) if parts else None
    known = [score for score in by_language.values() if score is not None]
    found: dict[str, Any] = {"speech": float(np.mean(known)) if known else None}
    found["languages"] = {language: score for language, score in by_language.items() if language}
    found["abilities"] = sorted({part for own in scores.values() for part in own})
    return found


def shown(found: Mapping[str, Any], suite: str) -> RenderableType:
    """Render the summary for a terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim", show_edge=False)
    table.add_column(suite, min_width=22)
    for name in ("items", "text", "missing", "speech", "missing"):
        table.add_column(name, justify="right", no_wrap=True)
    reasons: Counter[tuple[str, str]] = Counter()
    for task, one in found["tasks"].items():
        form = ".2f" if one["kind"] == TaskKind.STYLE else ".1f"
        table.add_row(Text(task, "bold"), f"{one['items']:,}", *_cells(one, "score", form))
        for measure in MEASURES if one["kind"] == TaskKind.INSTRUCTIONS else ():
            table.add_row(Text(f"  {measure.replace('_', ', ')}", "dim"), "", *_cells(one, measure, form, counts=False))
        for channel in CHANNELS:
            reasons.update({(channel, why): count for why, count in one.get(channel, {}).get("missing", {}).items()})
    table.add_row()
    for name, form in (("IQ", ".1f"), ("EQ", ".2f")):
        if name in found:
            values = [format_number(found[name].get(channel), form) for channel in CHANNELS]
            table.add_row(Text(name, "bold"), "", values[0], "", values[1], "")
    parts: list[RenderableType] = [Text(), table]
    if reasons:
        parts += [Text(), Text("missing", "dim")]
        parts += [Text(f"  {count:,} × {channel}: {why}") for (channel, why), count in reasons.most_common()]
    return Padding(Group(*parts, Text()), (0, 1))


def _cells(one: Mapping[str, Any], name: str, form: str, *, counts: bool = True) -> list[str]:
    cells = []
    for channel in CHANNELS:
        column = one.get(channel)
        cells.append("" if column is None else format_number(column.get(name), form))
        cells.append("" if column is None or not counts else f"{one['items'] - column['scored']:,}")
    return cells
