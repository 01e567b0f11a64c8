"""Write the tables of docs/metrics.md from the metric specifications.

python -m observability.metrics.docs docs/metrics.md
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from observability.metrics.metric import LABELS, MAX_LABEL_VALUES, OTHER, MetricSpec
from observability.metrics.registry import GROUPS

BEGIN = "<!-- made by python -m observability.metrics.docs docs/metrics.md; do not edit -->"


END = "<!-- end of the generated part -->"


def render_tables(page: str) -> str:
    """Return the page with current tables. Raise ValueError if the page lacks the two marker lines."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def tables() -> str:
    parts = []
    for heading, metrics in GROUPS.items():
        parts.append(f"### {heading}\n\n{_table(('metric', 'kind', 'labels', 'unit', 'meaning'), map(_row, metrics))}")
    labels = _table(("label", "values", "meaning"), (_label(name) for name in sorted(LABELS)))
    bound = (
        f"A label without a fixed set of values has at most {MAX_LABEL_VALUES} of them in one metric. A gauge drops "
        f"the values beyond that; a counter adds them to `{OTHER}`."
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
