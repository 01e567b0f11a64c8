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

from common.errors import InputError
from observability.run_directory import read_events

GRACE_SECONDS = 20.0
"""How long a request that has been claimed may take to be answered."""
POLL_SECONDS = 0.2
POOLS = ("rollout", "reward", "decoder")
"""Pools that grow and shrink while a job runs; the last where there is one (`reward.decoders`)."""
LARGEST_BYTES = 65536
"""Of a request; a larger file is none."""


@dataclass(frozen=True, kw_only=True)
class ControlRequest:
    id: str
    content: object
    """What stands in the file, not checked; None when that is no JSON."""


class ControlInbox:
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

    def take(self) -> list[ControlRequest]:
        """Claims the requests that have come, oldest first. Each is to be answered with an event, then `done`."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            if path.is_symlink() or not path.is_file():
                continue  # a folder, a pipe on which reading would wait, a way to somewhere else: nobody asks like that
            claimed = path.with_suffix(".taken")
            try:
                path.rename(claimed)
            except FileNotFoundError:
                continue  # the asker has taken it back
            found.append(ControlRequest(id=path.stem, content=_content(claimed)))
        return found

    def done(self, request: ControlRequest) -> None:
        """It has been answered."""
        (self._directory / f"{request.id}.taken").unlink(missing_ok=True)


def _content(path: Path) -> object:
    """What stands in a request; None when that is no JSON."""
    try:
        return json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def send_request(
    run: Path, kind: str, value: float | str | dict[str, int], *, seconds: float, say: Callable[[str], None]
) -> int:
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
    if answer["kind"] == "request_rejected":
        raise InputError(f"{run.name} refused: {answer.get('reason', 'no reason is given')}")
    if type(answer.get("iteration")) is not int:
        raise InputError(f"{run / 'events.jsonl'} answers the request by {answer}, which names no iteration")
    return answer["iteration"]


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
    turns = [event["kind"] for event in read_events(run) if event["kind"] in ("finished", "failed", "resumed")]
    if turns and turns[-1] != "resumed":
        raise InputError(f"{run.name} has {turns[-1]}: nothing can be asked of it any more")


def parse_mix_value(words: str) -> float | str:
    """Parse the value of `duet set-lambda`: "fixed=0.3" → 0.3; "adaptive", "fixed", "two_stage" → that mode. Raises
    InputError."""
    from configs.schema import MODES

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


def parse_pool_sizes(words: list[str]) -> dict[str, int]:
    """What `duet scale` was given: ["rollout=3", "reward=2"] → members by pool. Raises InputError."""
    value = {}
    for word in words:
        pool, _, number = word.partition("=")
        if pool not in POOLS or not number.isdecimal() or int(number) < 1:
            raise InputError(f"{word!r} is no size of a pool; allowed: {', '.join(f'{p}=NUMBER' for p in POOLS)}")
        value[pool] = int(number)
    return value
