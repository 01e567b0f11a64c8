"""What is asked of a running job from outside: files in the run's directory, taken between iterations.

    runs/NAME/requests/20261124T101530123456-ab12cd34.json    {"kind": "mix", "value": 0.3}

Whoever sees the directory can ask, without knowing the Ray cluster. A request passes through three names:

    ….json ──the controller claims it──▶ ….taken ──applied or refused, said in events.jsonl──▶ (gone)
       └───the asker's time is up───▶ (gone)

Each step is one rename or removal, so exactly one side has it. A controller that dies between claiming and saying so
leaves ….taken, which the next one takes again.
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

GRACE_SECONDS = 20.0
"""How long a request that has been claimed may take to be answered."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    id: str
    content: object
    """What stands in the file, not checked; None when that is no JSON."""


class Inbox:
    """The requests of one run, for the controller."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def open(cls, run: Path) -> Self:
        """Says, by the folder being there, that requests are taken; those that were claimed and not answered too."""
        directory = run / "requests"
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.glob("*.taken"):
            path.rename(path.with_suffix(".json"))
        return cls(directory)

    def take(self) -> list[Request]:
        """Claims the requests that have come, oldest first. Each is to be answered with an event, then `done`."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            claimed = path.with_suffix(".taken")
            try:
                path.rename(claimed)
            except FileNotFoundError:
                continue  # the asker has taken it back
            try:
                content = json.loads(claimed.read_text())
            except ValueError:
                content = None
            found.append(Request(id=path.stem, content=content))
        return found

    def done(self, request: Request) -> None:
        """It has been answered."""
        (self._directory / f"{request.id}.taken").unlink(missing_ok=True)


def ask(run: Path, kind: str, value: float | str, *, seconds: float, say: Callable[[str], None]) -> int:
    """Asks, and waits until the run has taken it. Returns the iteration from which it holds.

    Raises InputError when the run has ended, takes no requests or refuses this one, TimeoutError when nobody took it in
    time; the request is then taken back.
    """
    _refuse_ended(run)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
    path = run / "requests" / f"{stamp}.json"
    if not path.parent.is_dir():
        raise InputError(f"{run} takes no requests: it has no folder 'requests'")
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"kind": kind, "value": value}))
    aside.rename(path)
    say("asked; waiting for the next iteration")
    try:
        answer = _wait(run, stamp, seconds)
        if answer is None and not _withdraw(path):
            answer = _wait(run, stamp, GRACE_SECONDS)  # it is being taken at this moment
    except BaseException:
        _withdraw(path)
        raise
    if answer is None:
        raise TimeoutError(
            f"{run.name} did not take the request within {seconds:g} s; it was taken back. An iteration may take "
            "longer: --wait gives more time"
        )
    if answer["kind"] == "refused":
        raise InputError(f"{run.name} refused: {answer['reason']}")
    return int(answer["iteration"])


def _wait(run: Path, stamp: str, seconds: float) -> dict | None:
    """The event that answers the request; None when none comes in time. Raises InputError when the run ends first."""
    deadline = time.monotonic() + seconds
    while True:
        answer = next((event for event in read_events(run) if event.get("id") == stamp), None)
        if answer is not None or time.monotonic() >= deadline:
            return answer
        _refuse_ended(run)
        time.sleep(POLL_SECONDS)


def _withdraw(path: Path) -> bool:
    """Whether the request was still there to be taken back."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


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
