"""Writes the tables of docs/metrics.md anew: python -m observability.metrics.docs docs/metrics.md

The tables of docs/metrics.md, from the table of metrics. Pure.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from observability.metrics.metric import LABELS, MOST_VALUES, OTHER, MetricSpec
from observability.metrics.registry import GROUPS

BEGIN = "<!-- made by python -m observability.metrics.docs docs/metrics.md; not to be edited by hand -->"


END = "<!-- end of what is made -->"


def render_tables(page: str) -> str:
    """The page with the tables as they are to be. Raises ValueError where it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def tables() -> str:
    parts = []
    for heading, metrics in GROUPS.items():
        parts.append(f"### {heading}\n\n{_table(('metric', 'kind', 'by', 'unit', 'meaning'), map(_row, metrics))}")
    labels = _table(("label", "values", "what it is"), (_label(name) for name in sorted(LABELS)))
    bound = (
        f"A label that may have any value has at most {MOST_VALUES} of them in one metric; what comes after is left "
        f"out of a gauge, and counted under `{OTHER}`."
    )
    return "\n\n".join([*parts, f"### Labels\n\n{labels}\n\n{bound}"])


def _row(metric: MetricSpec) -> Sequence[str]:
    by = ", ".join(f"`{label}`" for label in metric.labels)
    return f"`{metric.name}`", metric.kind, by, metric.unit, metric.meaning


def _label(name: str) -> Sequence[str]:
    label = LABELS[name]
    values = ", ".join(f"`{value}`" for value in label.values) if label.values else "any"
    return f"`{name}`", values, label.meaning


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(render_tables(path.read_text("utf-8")), "utf-8")
