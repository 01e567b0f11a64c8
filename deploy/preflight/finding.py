"""Findings of the pre-flight checks: fine, warning or error, each with a remedy. Pure."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    FINE = "fine"
    WARNING = "warning"
    """A run starts, but may go wrong."""
    ERROR = "error"
    """A run does not start, or fails later."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    """Name of the check, one or two words."""
    state: Severity
    text: str
    """The observation, with its numbers."""
    remedy: str = ""
    """What to do; empty if the text of an error says so itself."""


@dataclass(frozen=True)
class CheckReporter:
    """Creates the findings of one check."""

    check: str

    def fine(self, text: str) -> Finding:
        return Finding(check=self.check, state=Severity.FINE, text=text)

    def warning(self, text: str, remedy: str) -> Finding:
        return Finding(check=self.check, state=Severity.WARNING, text=text, remedy=remedy)

    def error(self, text: str, remedy: str = "") -> Finding:
        return Finding(check=self.check, state=Severity.ERROR, text=text, remedy=remedy)


MAX_EXAMPLES = 3
"""Rows that a finding names for one kind of error. The rest is counted."""


@dataclass
class RowErrors:
    """One kind of error in the rows of a file: the number of rows, and the first few."""

    make: Callable[[str, str], Finding]
    """`CheckReporter.warning` or `CheckReporter.error`."""
    error: str
    """The error as a predicate: "prompts have no text"."""
    remedy: str
    max_share: float = 0.0
    """Share of the rows that may have the error without a finding."""
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, row: str) -> None:
        """Count a row."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(row)

    def findings(self, key: str, rows: int) -> Iterator[Finding]:
        """Yield a finding if too many of the file's `rows` have the error. `key`: the file's configuration key."""
        if self.count > self.max_share * rows:
            more = self.count - len(self.examples)
            shown = "; ".join(self.examples) + (f"; and {more:,} more" if more else "")
            yield self.make(f"{key}: {self.count:,} of {rows:,} {self.error}: {shown}", self.remedy)


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the worst severity; FINE without findings."""
    order = list(Severity)
    return max((finding.state for finding in findings), key=order.index, default=Severity.FINE)


def count_by_severity(findings: Iterable[Finding]) -> dict[Severity, int]:
    """Return the number of findings of each severity."""
    states = [finding.state for finding in findings]
    return {state: states.count(state) for state in Severity}


def format_size(count: float) -> str:
    """Format bytes: 7.1 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB" if count < 1000 else f"{count:,.0f} TiB"
