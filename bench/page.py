"""Puts the measurements into `docs/performance.md`, between its markers; the rest of the page is written by hand."""

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from bench.fixtures import ROOT
from bench.rows import BenchRow
from evaluation.ablation.page import table
from observability.summary import package_version

PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- written by make bench -->", "<!-- end -->"


def write_page(rows: Sequence[BenchRow]) -> None:
    """Replaces what stands between the markers."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(content(rows)) + "\n" + END + after, "utf-8")


def content(rows: Sequence[BenchRow]) -> list[str]:
    """Facts of the machine, the lines with a goal, and those beside them."""
    goals = [[r.name, _number(r.ratio), r.goal, "yes" if r.met else "**no**", _spread(r)] for r in rows if r.goal]
    others = [[r.name, _number(r.ratio), _spread(r)] for r in rows if not r.goal]
    lines = [machine(), *table(["what", "median", "goal", "met", "spread"], goals)]
    return [*lines, "Beside them:", *table(["what", "median", "spread"], others)] if others else lines


def machine() -> str:
    """What was measured on, in a sentence."""
    names = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    memory = next((int(line.split()[1]) // 2**20 for line in _lines("/proc/meminfo") if "MemTotal" in line), 0)
    versions = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "vllm", "ray", "deepspeed", "trl"))
    return (
        f"{date.today():%Y-%m-%d}, {os.cpu_count()} cores ({next(names, platform.machine())}), {memory} GiB, "
        f"Python {platform.python_version()}, {versions}."
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _spread(row: BenchRow) -> str:
    return f"{_number(row.spread[0])} – {_number(row.spread[1])}"
