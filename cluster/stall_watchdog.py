"""On a stall, dumps pending calls and all stack traces to disk.

`StallDetector` detects, `StallReport` writes, `StallMonitor` runs both in a thread. They never end the run: deadlines
do.
"""

import faulthandler
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.monitored_actor import stacks_of

POLL_INTERVAL_S = 1.0
"""Between two checks."""
REPORT_TIMEOUT_S = 20.0
"""Timeout of collecting the stacks of all actors."""


@dataclass(frozen=True, kw_only=True)
class Stall:
    seconds: float
    """Time since the last progress."""
    last: str
    """The last progress, in words."""


class StallDetector:
    """Reports a stall once per pause of progress that exceeds `timeout_s`. Pure."""

    def __init__(self, timeout_s: float, now: float) -> None:
        """timeout_s: 0 disables the detector. now: time on the caller's clock, here and below."""
        self._timeout_s, self._since, self._last, self._reported = timeout_s, now, "the start", False

    def touch(self, what: str, now: float) -> None:
        """Record progress."""
        self._since, self._last, self._reported = now, what, False

    def check(self, now: float) -> Stall | None:
        """Return a stall that was not returned yet."""
        waited = now - self._since
        if self._reported or not self._timeout_s or waited < self._timeout_s:
            return None
        self._reported = True
        return Stall(seconds=waited, last=self._last)


@dataclass(frozen=True, kw_only=True)
class PendingCall:
    """An actor and its pending call, if any."""

    name: str
    actor: Any
    """Actor handle."""
    doing: str = ""
    """Activity of the pending call; empty without one."""
    since: float = 0.0
    """Time of the call, by time.monotonic()."""


class StallReport:
    """Writes `stalls/<time>.txt` in a run's directory: pending calls with their age, and all stacks."""

    def __init__(
        self,
        directory: Path,
        pending_calls: Callable[[], list[PendingCall]],
        redact: Callable[[str], str] = lambda text: text,
    ) -> None:
        """pending_calls: returns every actor. redact: removes secrets from a text."""
        self._directory, self._pending_calls, self._redact = directory / "stalls", pending_calls, redact

    def write(self, stall: Stall) -> str:
        """Write the report. Return one line for an event: pending calls, their age, and the report's path. Takes little
        more than `REPORT_TIMEOUT_S`; the report says which actors sent no stacks by then."""
        calls = sorted(self._pending_calls(), key=lambda call: (not call.doing, call.since, call.name))
        now = time.monotonic()
        pending = [f"{call.name} ({call.doing}, {now - call.since:.0f} s)" for call in calls if call.doing]
        first = (
            f"no progress for {stall.seconds:.0f} s since {stall.last}; "
            f"waiting for {', '.join(pending) if pending else 'no actor'}"
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{datetime.now():%Y%m%d-%H%M%S-%f}.txt"
        with path.open("w") as file:
            print(self._redact(first), file=file)
            print("\n==== controller", file=file, flush=True)
            # First, while the controller still does what stalled.
            faulthandler.dump_traceback(file=file, all_threads=True)
        texts = self._stacks(calls)
        with path.open("a") as file:
            for call in calls:
                doing = f", pending: {call.doing}" if call.doing else ""
                print(self._redact(f"\n==== {call.name}{doing}\n{texts[call.name]}"), file=file)
        return self._redact(f"{first}; stacks in {self._directory.name}/{path.name}")

    def _stacks(self, calls: list[PendingCall]) -> dict[str, str]:
        """Collect all stacks in parallel, so that a slow actor does not delay the others."""
        found: dict[str, str] = {}

        def fetch(call: PendingCall) -> None:
            found[call.name] = stacks_of(call.actor)

        # Daemon threads: a thread that hangs must not keep the controller from exiting.
        threads = [threading.Thread(target=fetch, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + REPORT_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return {call.name: found.get(call.name, "no stacks received in time") for call in calls}


class StallMonitor:
    """Thread that checks a detector and writes reports. Use as a context manager, or call `start` and `stop`."""

    def __init__(self, detector: StallDetector, report: StallReport, emit_event: Callable[..., None]) -> None:
        """emit_event: takes a kind and fields; called from the thread."""
        self._detector, self._report, self._emit_event = detector, report, emit_event
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, without waiting for a report in progress."""
        self._ended.set()

    def touch(self, what: str) -> None:
        """Record progress."""
        self._detector.touch(what, time.monotonic())

    def __enter__(self) -> "StallMonitor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._ended.wait(POLL_INTERVAL_S):
            stall = self._detector.check(time.monotonic())
            if stall is None:
                continue
            try:
                self._emit_event("stalled", summary=self._report.write(stall))
            except Exception as error:  # a failed report must not end the run, which may recover
                self._emit_event("stalled", summary=f"no progress for {stall.seconds:.0f} s; no report: {error!r}")
