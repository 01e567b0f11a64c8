"""Control requests to a running job: files in the run's directory, applied between iterations.

    runs/NAME/requests/20261124T101530123456-ab12cd34.json    {"kind": "mix", "value": 0.3}

Requests need access to the directory alone, not to the Ray cluster. A request passes through these states:

    ….json ──controller claims it──▶ ….taken ──applied or rejected, recorded in events.jsonl──▶ (removed)
       └───sender times out───▶ (removed)

Each transition is one rename or removal, so exactly one side owns the request. A controller that dies between claim and
event leaves ….taken, which the next one claims again.
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

CLAIMED_TIMEOUT_S = 20.0
"""Longest time between claim and event."""
POLL_INTERVAL_S = 0.2
POOLS = ("rollout", "reward", "decoder")
"""Pools that can be resized during a run. The decoder pool is optional (`reward.decoders`)."""
MAX_BYTES = 65536
"""Size limit of a request file."""


@dataclass(frozen=True, kw_only=True)
class ControlRequest:
    id: str
    content: object
    """Content of the file, unchecked; None if it is not JSON."""


class ControlInbox:
    """The controller's side of the requests of a run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def open(cls, run: Path) -> Self:
        """Create the folder, which signals that requests are accepted. Requeue requests that were claimed only."""
        directory = run / "requests"
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.glob("*.taken"):
            path.rename(path.with_suffix(".json"))
        return cls(directory)

    def take(self) -> list[ControlRequest]:
        """Claim new requests, oldest first. The caller emits an event for each, then calls `done`."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            if path.is_symlink() or not path.is_file():
                continue  # not a request: a folder, a link, or a pipe that would block the read
            claimed = path.with_suffix(".taken")
            try:
                path.rename(claimed)
            except FileNotFoundError:
                continue  # withdrawn by the sender
            found.append(ControlRequest(id=path.stem, content=_content(claimed)))
        return found

    def done(self, request: ControlRequest) -> None:
        """Remove a request after its event."""
        (self._directory / f"{request.id}.taken").unlink(missing_ok=True)


def _content(path: Path) -> object:
    """Return the content of a request; None if it is not JSON."""
    try:
        return json.loads(path.read_bytes()) if path.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def send_request(
    run: Path, kind: str, value: float | str | dict[str, int], *, timeout_s: float, print_line: Callable[[str], None]
) -> int:
    """Send a request and wait until the run has applied it. Return the first iteration in which it holds.

    Raises:
        InputError: The run has ended, takes no requests, or rejected this one.
        TimeoutError: The run did not claim it in time. The request is withdrawn.
    """
    _check_running(run)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
    path = run / "requests" / f"{stamp}.json"
    if not path.parent.is_dir():
        raise InputError(f"{run} takes no requests: it has no folder 'requests'")
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"kind": kind, "value": value}))
    partial.rename(path)
    print_line("request sent; waiting for the next iteration")
    try:
        event = _wait_for_event(run, stamp, timeout_s)
        if event is None and not _withdraw(path):
            event = _wait_for_event(run, stamp, CLAIMED_TIMEOUT_S)  # claimed at this moment
    except BaseException:
        _withdraw(path)
        raise
    if event is None:
        raise TimeoutError(
            f"{run.name} did not take the request within {timeout_s:g} s, and it was withdrawn. For longer iterations, "
            "increase --wait"
        )
    if event["kind"] == "request_rejected":
        raise InputError(f"{run.name} rejected the request: {event.get('reason', 'no reason is given')}")
    if type(event.get("iteration")) is not int:
        raise InputError(f"{run / 'events.jsonl'}: the event of the request names no iteration: {event}")
    return event["iteration"]


def _wait_for_event(run: Path, stamp: str, timeout_s: float) -> dict | None:
    """Return the event of a request; None on timeout. Raise InputError if the run ends first."""
    deadline = time.monotonic() + timeout_s
    while True:
        event = next((event for event in read_events(run) if event.get("id") == stamp), None)
        if event is not None or time.monotonic() >= deadline:
            return event
        _check_running(run)
        time.sleep(POLL_INTERVAL_S)


def _withdraw(path: Path) -> bool:
    """Remove a request. Return False if it was claimed before."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _check_running(run: Path) -> None:
    """Raise InputError if the run has ended."""
    kinds = [event["kind"] for event in read_events(run) if event["kind"] in ("finished", "failed", "resumed")]
    if kinds and kinds[-1] != "resumed":
        raise InputError(f"{run.name} has {kinds[-1]} and takes no requests")


def parse_mix_value(words: str) -> float | str:
    """Parse the argument of `duet set-lambda`: "fixed=0.3" → 0.3; "adaptive", "fixed", "two_stage" → that mode. Raise
    InputError for other words."""
    from configs.schema import MODES

    name, equals, number = words.partition("=")
    if not equals and name in MODES:
        return name
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if name != "fixed" or not 0.0 <= value <= 1.0:
        raise InputError(f"{words!r} is not a value of λ; allowed: fixed=NUMBER from 0 to 1, {', '.join(MODES)}")
    return value


def parse_pool_sizes(words: list[str]) -> dict[str, int]:
    """Parse the arguments of `duet scale`: ["rollout=3", "reward=2"] → sizes by pool. Raise InputError for other
    words."""
    value = {}
    for word in words:
        pool, _, number = word.partition("=")
        if pool not in POOLS or not number.isdecimal() or int(number) < 1:
            raise InputError(f"{word!r} is not a pool size; allowed: {', '.join(f'{p}=NUMBER' for p in POOLS)}")
        value[pool] = int(number)
    return value
