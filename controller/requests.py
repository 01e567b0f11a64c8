"""What is asked of a running job from outside: files in the run's directory, taken between iterations.

    runs/NAME/requests/20261124T101530123456-ab12cd34.json    {"kind": "mix", "value": 0.3}

Whoever sees the directory can ask, without knowing the Ray cluster. A request is written aside and renamed, so that it
is whole or not there. The controller removes it when it takes it and says so in events.jsonl; the asker waits for that.
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from controller.records import read_events
from speech.errors import InputError

WAIT_SECONDS = 120.0
"""How long an asker waits for the next iteration."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    id: str
    kind: str
    """"mix"."""
    value: float | str


class Inbox:
    """The requests of one run, for the controller."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def open(cls, run: Path) -> Self:
        """Says, by the folder being there, that requests are taken."""
        (run / "requests").mkdir(parents=True, exist_ok=True)
        return cls(run / "requests")

    def take(self) -> list[Request]:
        """The requests that have come, oldest first; they are gone afterwards."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            found.append(Request(id=path.stem, **json.loads(path.read_text())))
            path.unlink()
        return found


def ask(run: Path, kind: str, value: float | str, *, seconds: float, say: Callable[[str], None]) -> int:
    """Asks, and waits until the run has taken it. Returns the iteration from which it holds.

    Raises InputError when the run has ended or takes no requests, TimeoutError when nobody took it in time; the request
    is then taken back.
    """
    _refuse_ended(run)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
    path = run / "requests" / f"{stamp}.json"
    if not path.parent.is_dir():
        raise InputError(f"{run} takes no requests: it has no folder 'requests'")
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"kind": kind, "value": value}))
    aside.replace(path)
    say("asked; waiting for the next iteration")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for event in read_events(run):
            if event.get("id") == stamp:
                return int(event["iteration"])
        try:
            _refuse_ended(run)
        except InputError:
            path.unlink(missing_ok=True)
            raise
        time.sleep(POLL_SECONDS)
    path.unlink(missing_ok=True)
    raise TimeoutError(f"{run.name} did not take the request within {seconds:g} s; it was taken back")


def _refuse_ended(run: Path) -> None:
    for event in read_events(run):
        if event["kind"] in ("finished", "failed"):
            raise InputError(f"{run.name} has {event['kind']}: nothing can be asked of it any more")


def mix_value(words: str) -> float | str:
    """What `duet mix` was given: "fixed=0.3" → 0.3; "adaptive", "fixed", "two_stage" → that mode. Raises InputError."""
    from controller.mix import MODES

    name, equals, number = words.partition("=")
    if not equals and name in MODES:
        return name
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if name != "fixed" or not 0.0 <= value <= 1.0:
        raise InputError(f"{words!r} is no setting of λ; allowed: fixed=NUMBER from 0 to 1, {', '.join(MODES)}")
    return value
