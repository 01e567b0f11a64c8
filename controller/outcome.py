"""The end of a run as the user sees it: held-out questions before and after, and where to look and listen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

PERCENT = {
    "answer_accuracy": "right in the text",
    "heard_accuracy": "heard as written",
    "spoken_right": "right in what is heard",
}
"""Shares of held-out replies, shown as percentages, in this order."""
POINTS = {"answer": "answer", "heard": "heard", "manner": "manner"}
"""Mean scores on the raters' scale."""


def final_table(
    before: Mapping[str, Mapping[str, float | None]],
    after: Mapping[str, Mapping[str, float | None]],
    standard_errors: Mapping[str, Mapping[str, float]] | None = None,
    paths: Mapping[str, Sequence[Path]] | None = None,
) -> RenderableType:
    """The end of a run: held-out questions before and after, and where to look and listen.

    before, after: evaluation sets by name, the headline first; each a mapping of `PERCENT` (shares, 0..1), `POINTS`
    (means) and `prompts`, as in summary.json. Measures that a set lacks are left out; None shows as a dash.
    standard_errors: by set and measure, of the difference after − before, in the unit of the measure.
    paths: files by caption.
    """
    standard_errors = standard_errors or {}
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim", show_edge=False)
    table.add_column("", min_width=26)
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", min_width=7, no_wrap=True)
    if standard_errors:
        table.add_column("± 95 %", justify="right", no_wrap=True)
    for name in after:
        if name != next(iter(after)):
            table.add_row()
        prompts = after[name].get("prompts")
        count = f"  {prompts:,} questions" if prompts is not None else ""
        table.add_row(Text.assemble((name.replace("_", " "), "bold"), (count, "dim")))
        for key, caption in (PERCENT | POINTS).items():
            if key in before[name] or key in after[name]:
                table.add_row(
                    *_comparison(
                        caption,
                        key in PERCENT,
                        before[name].get(key),
                        after[name].get(key),
                        standard_errors.get(name, {}).get(key),
                    )
                )
    parts: list[RenderableType] = [Text(), table]
    for caption, files in (paths or {}).items():
        parts += [Text(), Text(caption, "dim"), *(Text(f"  {file}", overflow="fold") for file in files)]
    return Padding(Group(*parts, Text()), (0, 1))


def _comparison(
    caption: str, percent: bool, before: float | None, after: float | None, error: float | None
) -> list[Text]:
    scale, digits, unit = (100, 1, " %") if percent else (1, 2, "  ")
    change = (after - before) * scale if before is not None and after is not None else None
    margin = 1.96 * error * scale if error is not None else None
    # Coloured only where it is more than chance, as far as that is known.
    shown = "" if change is None or abs(change) <= (margin or 0.0) else "green" if change > 0 else "red"
    values = ["–  " if value is None else f"{value * scale:.{digits}f}{unit}" for value in (before, after)]
    return [
        Text(f"  {caption}"),
        *(Text(value) for value in values),
        Text(signed(change, digits) + "  ", shown),
        Text(number(margin, f".{digits}f"), "dim"),
    ][: None if error is not None else 4]


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def signed(change: float | None, digits: int) -> str:
    """With its sign; what rounds to zero has none."""
    if change is None:
        return "–"
    return format(change, f"+.{digits}f").replace("-", "−") if round(change, digits) else format(0.0, f".{digits}f")
