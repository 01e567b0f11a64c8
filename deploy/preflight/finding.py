"""What a check found: a line that says fine, a warning or an error, and what to do about it. Pure."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    FINE = "fine"
    WARNING = "warning"
    """A run would start, and may go badly."""
    ERROR = "error"
    """A run would not start, or would end before its end."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    """Whose it is, a word or two."""
    state: Severity
    text: str
    """What was found, with the numbers."""
    remedy: str = ""
    """What to do; of an error that says so itself, nothing."""


@dataclass(frozen=True)
class CheckReporter:
    """Makes the findings of one check."""

    check: str

    def fine(self, text: str) -> Finding:
        return Finding(check=self.check, state=Severity.FINE, text=text)

    def warning(self, text: str, remedy: str) -> Finding:
        return Finding(check=self.check, state=Severity.WARNING, text=text, remedy=remedy)

    def error(self, text: str, remedy: str = "") -> Finding:
        return Finding(check=self.check, state=Severity.ERROR, text=text, remedy=remedy)


FEW = 3
"""Examples that are named of one kind of fault: the first show what is wrong, the number says how much of it."""


@dataclass
class RowErrors:
    """One kind of fault in the rows of a file: how many have it, and the first few."""

    make: Callable[[str, str], Finding]
    """`CheckReporter.warning` or `CheckReporter.error`."""
    what: str
    """What is wrong with them: "prompts have no text"."""
    remedy: str
    bearable: float = 0.0
    """Share of the rows that may have it without a word."""
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, which: str) -> None:
        """Counts a row that has it."""
        self.count += 1
        if len(self.first) < FEW:
            self.first.append(which)

    def findings(self, key: str, rows: int) -> Iterator[Finding]:
        """A finding where there are too many. key: where the configuration names the file; rows: those in it."""
        if self.count > self.bearable * rows:
            more = self.count - len(self.first)
            shown = "; ".join(self.first) + (f"; and {more:,} more" if more else "")
            yield self.make(f"{key}: {self.count:,} of {rows:,} {self.what}: {shown}", self.remedy)


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst state among them; fine when there are none."""
    order = list(Severity)
    return max((finding.state for finding in findings), key=order.index, default=Severity.FINE)


def count_by_severity(findings: Iterable[Finding]) -> dict[Severity, int]:
    """How many of each state."""
    states = [finding.state for finding in findings]
    return {state: states.count(state) for state in Severity}


def format_size(count: float) -> str:
    """Bytes for people: 7.1 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB" if count < 1000 else f"{count:,.0f} TiB"
