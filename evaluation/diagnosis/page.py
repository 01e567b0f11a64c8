"""Render diagnosis sections as a Markdown page and for the terminal."""

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
"""Table cell. None: not measured, shown as a dash."""
Row = dict[str, Any]
"""Cells by column."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table with headings and the data rows."""

    name: str
    """Name of the Parquet file with all rows and columns."""
    caption: str
    columns: dict[str, str]
    """Page heading by data column. Columns without a heading are only in the file."""
    rows: list[Row]
    brief: dict[str, str] | None = None
    """Terminal heading by column. None: as on the page. Empty: hidden."""
    shown: list[Row] | None = None
    """Rows for the page. None: all."""

    def cells(self, columns: Sequence[str]) -> list[list[str]]:
        return [[write_diagnosis(row[c]) for c in columns] for row in (self.rows if self.shown is None else self.shown)]

    def arrow(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One topic of the diagnosis with its findings."""

    title: str
    findings: list[str]
    """Result sentences, for page and terminal."""
    notes: list[str] = field(default_factory=list)
    """Notes on method and interpretation, for the page."""
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    """Plot files in the directory of the page."""

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
    """Return the page in Markdown."""
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
    """Render findings and brief tables for the terminal."""
    parts: list[RenderableType] = []
    for section in sections:
        parts += [Text(), Text(section.title, "bold"), *(Padding(Text(f), (0, 0, 0, 2)) for f in section.findings)]
        for table in section.tables:
            headings = table.columns if table.brief is None else table.brief
            if headings:
                grid = Grid(box=None, pad_edge=False, padding=(0, 1), header_style="dim", show_edge=False)
                for place, heading in enumerate(headings.values()):
                    # On a narrow terminal the first column shrinks and numbers stay complete.
                    grid.add_column(
                        heading, justify="right" if place else "left", min_width=len(heading) if place else 8
                    )
                for cells in table.cells(list(headings)):
                    grid.add_row(*map(Text, cells))
                parts.append(Padding(grid, (1, 0, 0, 2)))
    return Padding(Group(*parts, Text(), Text("the whole page", "dim"), Text(f"  {page}"), Text()), (0, 1))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
