"""One HTML file of everything: the page's own style and script, the run as JSON, the sounds as base64.

Nothing of a run becomes markup. It travels as JSON in which no "<" is left, and the script puts it into the page as
text. The page's own policy allows the two inline parts below, by their hashes, and no request to anywhere else.
"""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files

import pyarrow as pa

from configs.schema import HEADLINE
from observability.reply_schema import judged_replies
from observability.report import listening as room
from observability.report import overview
from observability.report.audio import ReportAudio
from observability.report.source import ReportSource

SCRIPTS = ("dom.js", "charts.js", "overview.js", "player.js", "room.js", "blind.js", "main.js")
"""In the order in which they build upon each other."""


def build_report(source: ReportSource, sounds: ReportAudio) -> str:
    """The report of a run as it is now."""
    table, events, summary = source.iterations(), source.events(), source.summary()
    evaluations = {when: _evaluations(source, when) for when in ("before", "after")}
    judged = {when: {name: judged_replies(t) for name, t in found.items()} for when, found in evaluations.items()}
    done = table.num_rows if table is not None else 0
    listening, clips = room.build(source, evaluations, sounds)
    data = {
        "run": overview.head(source.config, source.name, table, events, summary),
        "state": overview.state(
            summary, events, worked_on=source.worked_on, done=done, planned=source.config.train.num_steps
        ),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "series": overview.series(table),
        "held_out": overview.held_out(judged["before"], judged["after"], source.config.reward.score_max),
        "events": overview.happenings(events),
        "room": listening,
    }
    return assemble(source.name, data, clips)


def assemble(name: str, data: dict, clips: dict) -> str:
    """The page of these data. clips: sounds by key."""
    parts = {
        "title": _text(name),
        "policy": content_security_policy(),
        "style": _own("style.css"),
        "data": embedded(data),
        "sounds": embedded(clips),
        "script": _script(),
    }
    # Split once: what a run says may look like a place to fill.
    pieces = re.split(r"\{\{(\w+)\}\}", _own("index.html"))
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def embedded(value: object) -> str:
    """JSON that is safe within a script element: ASCII, and no "<" that could end it or begin a comment."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def content_security_policy() -> str:
    """The page's Content-Security-Policy."""
    return (
        f"default-src 'none'; style-src '{_hash(_own('style.css'))}'; script-src '{_hash(_script())}'; "
        "img-src data:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def _evaluations(source: ReportSource, when: str) -> dict[str, pa.Table]:
    """By set, the headline first."""
    names = sorted(source.config.data.validation, key=lambda name: name != HEADLINE)
    found = {name: source.evaluation(when, name) for name in names}
    return {name: table for name, table in found.items() if table is not None}


@cache
def _script() -> str:
    return "\n".join(["'use strict';", *map(_own, SCRIPTS)])


@cache
def _own(name: str) -> str:
    return (files("observability.report") / "page" / name).read_text("utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _text(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
