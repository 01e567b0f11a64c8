"""A diagnosis as text: sections of sentences, tables and plots, on a page in Markdown and on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

Cell = str | int | float | None
"""None: not measured, shown as a dash."""
Row = dict[str, Any]
"""A `Cell` by column."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers of one kind, with what each column is."""

    name: str
    """Of the Parquet file that holds them whole."""
    caption: str
    columns: dict[str, str]
    """Heading on the page by column of the data; columns without a heading are only in the file."""
    rows: list[Row]
    brief: dict[str, str] | None = None
    """Columns and headings for the terminal; None: as on the page. Empty: the table is not shown there."""
    shown: list[Row] | None = None
    """The rows for the page, where the file holds too many."""

    def cells(self, columns: Sequence[str]) -> list[list[str]]:
        return [[write_diagnosis(row[c]) for c in columns] for row in (self.rows if self.shown is None else self.shown)]

    def arrow(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question and what the run says to it."""

    title: str
    findings: list[str]
    """Sentences with the result, for page and terminal."""
    notes: list[str] = field(default_factory=list)
    """How it was measured and how to read it, for the page."""
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    """Files beside the page."""

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)


def write_diagnosis(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return text.replace("-", "−", 1) if value < 0 else text
    return f"{value:,}" if isinstance(value, int) else value


def markdown(title: str, command: str, sections: Sequence[Section]) -> str:
    """The page."""
    lines = [f"# {title}", "", "Made by this command; do not edit:", "", f"    {command}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.findings:
            lines += [paragraph, ""]
        for table in section.tables:
            if table.columns:
                lines += [f"{table.caption} (`{table.name}.parquet`)", "", _line(list(table.columns.values()))]
                lines += [_line(["---"] * len(table.columns)), *map(_line, table.cells(list(table.columns))), ""]
        for plot in section.plots:
            lines += [f"![{section.title}]({plot})", ""]
        for note in section.notes:
            lines += [f"- {note}"]
        lines += [""] if section.notes else []
    return "\n".join(lines).rstrip() + "\n"


def summary(sections: Sequence[Section], page: Path) -> RenderableType:
    """For the terminal: findings and the brief tables."""
    parts: list[RenderableType] = []
    for section in sections:
        parts += [Text(), Text(section.title, "bold"), *(Padding(Text(f), (0, 0, 0, 2)) for f in section.findings)]
        for table in section.tables:
            headings = table.columns if table.brief is None else table.brief
            if headings:
                grid = Grid(box=None, pad_edge=False, padding=(0, 1), header_style="dim", show_edge=False)
                for place, heading in enumerate(headings.values()):
                    # The first column gives way when the terminal is narrow; numbers stay whole.
                    grid.add_column(
                        heading, justify="right" if place else "left", min_width=len(heading) if place else 8
                    )
                for cells in table.cells(list(headings)):
                    grid.add_row(*map(Text, cells))
                parts.append(Padding(grid, (1, 0, 0, 2)))
    return Padding(Group(*parts, Text(), Text("the whole page", "dim"), Text(f"  {page}"), Text()), (0, 1))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
