"""When nothing comes further: who is waited for, and what everybody is doing, on disk while it can still be seen.

`StallDetector` decides, `StallReport` writes, `StallMonitor` is the thread between them. None of them ends anything:
deadlines do.
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

LOOK_SECONDS = 1.0
"""How often the thread looks."""
REPORT_SECONDS = 20.0
"""Longest time for the stacks of all members together."""


@dataclass(frozen=True, kw_only=True)
class StallError:
    seconds: float
    """Since the last progress."""
    last: str
    """What that was."""


class StallDetector:
    """Notices when there has been no progress for `seconds`, and says so once until there is some. Pure."""

    def __init__(self, seconds: float, now: float) -> None:
        """seconds: 0 never notices anything. now: in the clock of the caller, here and below."""
        self._seconds, self._since, self._last, self._said = seconds, now, "the start", False

    def touch(self, what: str, now: float) -> None:
        """There was progress."""
        self._since, self._last, self._said = now, what, False

    def late(self, now: float) -> StallError | None:
        """The stall, the first time that it is asked for."""
        waited = now - self._since
        if self._said or not self._seconds or waited < self._seconds:
            return None
        self._said = True
        return StallError(seconds=waited, last=self._last)


@dataclass(frozen=True, kw_only=True)
class PendingCall:
    """Somebody who is waited for, or who is merely there."""

    name: str
    actor: Any
    """Its handle."""
    doing: str = ""
    """What it was asked to do; empty: nothing."""
    since: float = 0.0
    """When, by time.monotonic()."""


class StallReport:
    """Writes `stalls/<time>.txt` in a run's directory: who is waited for, since when, and everybody's stacks."""

    def __init__(
        self,
        directory: Path,
        members: Callable[[], list[PendingCall]],
        redact: Callable[[str], str] = lambda text: text,
    ) -> None:
        """members: all of them; those with something to do are waited for. redact: takes secrets out of the text."""
        self._directory, self._members, self._redact = directory / "stalls", members, redact

    def write(self, stall: StallError) -> str:
        """Returns a line for an event: who is waited for, how long, and where the report is. Takes at most
        `REPORT_SECONDS` and a little; members that give no stacks by then are said to give none."""
        members = sorted(self._members(), key=lambda m: (not m.doing, m.since, m.name))
        now = time.monotonic()
        awaited = [f"{m.name} ({m.doing}, {now - m.since:.0f} s)" for m in members if m.doing]
        whom = f"waiting for {', '.join(awaited)}" if awaited else "waiting for no member"
        first = f"no progress for {stall.seconds:.0f} s since {stall.last}; {whom}"
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{datetime.now():%Y%m%d-%H%M%S-%f}.txt"
        with path.open("w") as file:
            print(self._redact(first), file=file)
            print("\n==== controller", file=file, flush=True)
            # Before anything that takes time: this is what it is doing now.
            faulthandler.dump_traceback(file=file, all_threads=True)
        texts = self._stacks(members)
        with path.open("a") as file:
            for member in members:
                asked = f", waited for: {member.doing}" if member.doing else ""
                print(self._redact(f"\n==== {member.name}{asked}\n{texts[member.name]}"), file=file)
        return self._redact(f"{first}; stacks in {self._directory.name}/{path.name}")

    def _stacks(self, members: list[PendingCall]) -> dict[str, str]:
        """Of all at once, since one that is slow to answer must not cost the others their turn."""
        found: dict[str, str] = {}

        def ask(member: PendingCall) -> None:
            found[member.name] = stacks_of(member.actor)

        # Daemons: one that never comes back must not keep the controller from leaving either.
        threads = [threading.Thread(target=ask, args=(member,), daemon=True) for member in members]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + REPORT_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return {member.name: found.get(member.name, "gave no answer in time") for member in members}


class StallMonitor:
    """A thread that looks after a watchdog. Use as a context, or `start` and `stop`."""

    def __init__(self, watchdog: StallDetector, report: StallReport, tell: Callable[..., None]) -> None:
        """tell: takes events, a kind and fields; called from this thread."""
        self._watchdog, self._report, self._tell = watchdog, report, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for a report that is being written."""
        self._ended.set()

    def touch(self, what: str) -> None:
        """There was progress."""
        self._watchdog.touch(what, time.monotonic())

    def __enter__(self) -> "StallMonitor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            stall = self._watchdog.late(time.monotonic())
            if stall is None:
                continue
            try:
                self._tell("stalled", summary=self._report.write(stall))
            except Exception as error:  # the run may yet come through; a report that fails must not end it
                self._tell("stalled", summary=f"no progress for {stall.seconds:.0f} s; no report: {error!r}")
