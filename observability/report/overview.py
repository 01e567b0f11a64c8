"""The first half of a report as plain data: the run's state, its course, held-out questions, what happened. Pure."""

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa

from configs.schema import Config
from observability.console import PERCENT, POINTS, format_event
from observability.iteration import PHASES
from observability.summary import FAULTS, paired_errors, summarise
from reward.scoring import ScoredReply

LINES = """iteration lambda lambda_raw gate_quality gate_information mix_overridden loss loss_preference loss_anchor
kl_text kl_speech entropy_text entropy_speech replies replies_dropped scores_missing""".split()
"""Columns of iterations.parquet that a report draws or lists; besides, every score and every phase."""
HEAD = ("iteration", "lambda", "mix_overridden", "weight_version", "replies", "seconds_total")
FAULT = {*FAULTS, "failed", "stalled", "judge_cache_dropped"}
SCALE = {"scale", "pool_resized", "actor_starting", "actor_ready", "actor_removed", "waiting_for_resources"}
SILENT = ("time", "kind", "id", "trace", "arithmetic")
"""Fields of an event that a sentence leaves out."""
MOST_EVENTS = 500
LONGEST = 400
NORMAL = 1.96
"""Standard errors to either side of a 95 % interval."""

Judgements = Mapping[str, Sequence[ScoredReply]]
"""Replies by evaluation set."""


def state(
    summary: Mapping | None, events: Sequence[Mapping], *, worked_on: bool, done: int, planned: int
) -> dict[str, str]:
    """How the run stands: a word, and a sentence for people. done, planned: iterations."""
    if summary is not None:
        if done < planned:
            return {"word": "stopped", "sentence": f"Ended by request after {done:,} of {planned:,} iterations."}
        return {"word": "finished", "sentence": "Ended as planned."}
    if worked_on:
        return {"word": "running", "sentence": "A job works on it now."}
    ends = [event for event in events if event["kind"] in ("failed", "controller_died", "started", "resumed")]
    if ends and ends[-1]["kind"] in ("failed", "controller_died"):
        return {"word": "failed", "sentence": sentence(ends[-1])}
    if not events:
        return {"word": "not started", "sentence": "No job has worked on it yet."}
    return {"word": "interrupted", "sentence": "No job works on it, and none ended it: it was killed. It can go on."}


def head(config: Config, name: str, table: pa.Table | None, events: Sequence[Mapping], summary: Mapping | None) -> dict:
    """The run in a few numbers. None: not measured (yet)."""
    rows = table.select([n for n in HEAD if n in table.column_names]).to_pylist() if table is not None else []
    last = rows[-1] if rows else {}
    times = [str(event["time"]) for event in events if "time" in event]
    version = last.get("weight_version")
    return {
        "name": name,
        "iteration": last.get("iteration", 0),
        "iterations": config.train.num_steps,
        "lambda": to_json_value(last.get("lambda")),
        "mode": config.mix_ratio.schedule,
        "overridden": bool(last.get("mix_overridden")),
        "version": None if version is None else version + 1,  # the iteration's step made the next one
        "replies": sum(row.get("replies") or 0 for row in rows),
        "seconds": to_json_value(summary.get("seconds", {}).get("total")) if summary else None,
        "seconds_iterations": to_json_value(sum(row.get("seconds_total") or 0.0 for row in rows)) if rows else None,
        "began": times[0] if times else None,
        "latest": times[-1] if times else None,
        "family": config.model.family,
        "scale": [config.reward.score_min, config.reward.score_max],
        "largest": config.mix_ratio.max,
    }


def series(table: pa.Table | None) -> dict:
    """Columns to draw, a value an iteration; None where nothing was measured."""
    if table is None:
        return {"lines": {}, "scores": {}, "seconds": {}}
    names = table.column_names
    scores = [name for name in names if name.startswith("score_")]
    return {
        "lines": {name: _column(table, name) for name in LINES if name in names},
        "scores": {name.removeprefix("score_"): _column(table, name) for name in scores},
        "seconds": {
            phase: _column(table, f"seconds_{phase}") for phase in (*PHASES, "total") if f"seconds_{phase}" in names
        },
    }


def held_out(before: Judgements, after: Judgements, highest: float) -> list[dict]:
    """By evaluation set and measure: before, after, and the half width of the paired 95 % interval of the change."""
    found = []
    for name, first in before.items():
        second = after.get(name)
        means = [summarise(first, highest), summarise(second, highest) if second else {}]
        errors = paired_errors(first, second, highest) if second else {}
        captions = {**PERCENT, **POINTS}
        measures = [key for key in captions if key in means[0]]
        measures += [key for key in means[0] if key not in captions and key not in ("prompts", "missing")]
        found.append(
            {
                "set": name,
                "prompts": len(first),
                "missing": [mean.get("missing") for mean in means],
                "measures": [
                    {
                        "name": key,
                        "caption": captions.get(key, key.replace("_", " ")),
                        "share": key in PERCENT,
                        "before": to_json_value(means[0].get(key)),
                        "after": to_json_value(means[1].get(key)),
                        "margin": to_json_value(NORMAL * errors[key]) if key in errors else None,
                    }
                    for key in measures
                ],
            }
        )
    return found


def happenings(events: Sequence[Mapping]) -> dict:
    """The newest events, newest first, and how many there were."""
    rows = [
        {
            "time": str(event.get("time", "")),
            "kind": event["kind"],
            "group": "fault" if event["kind"] in FAULT else "scale" if event["kind"] in SCALE else "other",
            "iteration": event["iteration"] if isinstance(event.get("iteration"), int) else None,
            "words": sentence(event),
        }
        for event in events[-MOST_EVENTS:]
    ]
    return {"all": len(events), "rows": rows[::-1]}


def sentence(event: Mapping) -> str:
    """An event in words; its fields, where nobody has written any."""
    try:
        found = format_event(event["kind"], event)
    except (KeyError, ValueError, TypeError):  # of another version of Duet, or of no event at all
        found = None
    if found is None:
        found = "; ".join(f"{key} {value}" for key, value in event.items() if key not in SILENT and value is not None)
    return found if len(found) <= LONGEST else found[: LONGEST - 1] + "…"


def to_json_value(value: object) -> object:
    """A number in five digits; what is not finite is not measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _column(table: pa.Table, name: str) -> list:
    return [to_json_value(value) for value in table[name].to_pylist()]
