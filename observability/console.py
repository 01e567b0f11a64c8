"""What the user sees of a run: live on a terminal, plain lines elsewhere, and the table at the end.

Events in words, for whoever watches a run. Pure.

The end of a run as the user sees it: held-out questions before and after, and where to look and listen.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from observability.iteration import PHASES, IterationStats, Progress

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
        Text(format_signed(change, digits) + "  ", shown),
        Text(format_number(margin, f".{digits}f"), "dim"),
    ][: None if error is not None else 4]


def format_number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def format_signed(change: float | None, digits: int) -> str:
    """With its sign; what rounds to zero has none."""
    if change is None:
        return "–"
    return format(change, f"+.{digits}f").replace("-", "−") if round(change, digits) else format(0.0, f".{digits}f")


WORDS = {
    "actor_died": "{member} {reason}; its work goes to another",
    "actor_starting": "{member} is being started",
    "actor_ready": "{member} is at work",
    "actor_removed": "{member} has left",
    "waiting_for_resources": "{member} waits for a place: {reason}",
    "task_failed": "{member} failed while {doing}: {error}; it is tried once more",
    "sync_interrupted": "{member} was interrupted while {doing}: {reason}; it goes on when that is sent again",
    "mix": "λ from outside, from iteration {iteration} on: {value}",
    "pool_resized": "{pool}: {before} → {after} members",
    "learner_died": "{reason}; the learner starts again from {where}",
    "learner_restarted": "the learner is back after {seconds:.0f} s",
    "checkpoint_failed": "{reason}; the run goes on and tries again",
    "step_skipped": "iteration {iteration}: {reason}; the step was skipped",
    "judge_cache_dropped": "what judges said before is lost, and they are asked again: {reason}",
    "stalled": "{summary}",
}
"""A sentence by kind of event, with its fields; other kinds are not for people."""


LONGEST = 300


def format_event(kind: str, fields: Mapping[str, object]) -> str | None:
    """The sentence for an event, None when there is none."""
    if kind not in WORDS:
        return None
    sentence = " ".join(WORDS[kind].format(**fields).split())
    return sentence if len(sentence) <= LONGEST else sentence[: LONGEST - 1] + "…"


RECENT = 10
"""Iterations from which speed and time left are judged."""


HEADER_EVERY = 20
"""Rows after which the plain lines repeat their header."""


SPARK = "▁▂▃▄▅▆▇█"


SPARK_WIDTH = 28


SPARK_SPAN = 0.05
"""Least range of λ that fills the height of the sparkline, so that noise does not look like a trend."""


PHASE_STYLES = dict(zip(PHASES, ("cyan", "magenta", "yellow", "green"), strict=True))


PHASE_BAR = 24


RUNNING = "iteration"
"""The stage of the loop itself; all other stages are announced by a line."""


class Display:
    """Shows `Progress` as it comes. A context manager, so that the terminal is left as it was found."""

    def __init__(
        self,
        run_name: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        scores: Sequence[str] = (),
    ) -> None:
        """scores: those to show beside the total; none: all that there are."""
        self.console = console or Console(highlight=False)
        self._name = run_name
        self._clock = clock
        self._shown = {"total", *scores}
        self._start = clock()
        self._done: list[IterationStats] = []
        self._progress = Progress(stage="", iterations_total=0)
        self._rows = self._shown_before = 0
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            # Rendered anew on each refresh, so that the clock goes on between iterations.
            self._live = Live(console=self.console, get_renderable=self.panel, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Takes in a snapshot: announces a new stage, prints the notes, shows the new iterations."""
        before, self._progress = self._progress, progress
        # Finished iterations come first: the stage is what happens now, after them.
        for iteration in progress.iterations:
            self._done.append(iteration)
            if self._live is None:
                self._print_row(iteration)
        if progress.stage not in (before.stage, RUNNING):
            self._line(progress.stage, "bold" if progress.finished else "")
        for note in progress.notes:
            self._line(note, "yellow")

    def begin(self) -> None:
        """A controller starts, which knows nothing of iterations that were shown before."""
        self._shown_before = len(self._done)

    def note(self, words: str) -> None:
        """A line of its own."""
        self._line(words, "yellow")

    @property
    def seen(self) -> int:
        """Iterations of this controller that have been shown."""
        return len(self._done) - self._shown_before

    def panel(self) -> RenderableType:
        """The live view as it is now, at most ten lines."""
        lines = Table.grid(padding=(0, 1))
        lines.add_column(style="dim", min_width=7)
        lines.add_column()
        if self._done:
            lines.add_row("λ", self._mix())
            lines.add_row("scores", self._scores())
            lines.add_row("KL", self._divergence())
            lines.add_row("speed", self._speed())
            lines.add_row("", self._phases())
        stage = "" if self._progress.finished else self._stage()
        return Padding(Group(Text(), self._header(), lines, stage), (0, 1))

    # ---- the live view

    def _header(self) -> RenderableType:
        done, total = self._number(), self._progress.iterations_total
        left = self._left()
        head = Table.grid(expand=True, padding=(0, 2))
        for _ in range(4):
            head.add_column(no_wrap=True)
        head.columns[1].ratio = 1
        head.add_row(
            Text(self._name, "bold"),
            ProgressBar(total=max(total, 1), completed=done, complete_style="green", finished_style="green"),
            Text.assemble((f"{done}", "bold"), f"/{total}"),
            Text.assemble(_clock(self._elapsed()), (f"  {_clock(left)} left" if left is not None else "", "dim")),
        )
        return head

    def _mix(self) -> Text:
        last = self._done[-1]
        series = [iteration.mix for iteration in self._done]
        return Text.assemble(
            (f"{last.mix:.3f}", "bold"),
            "  ",
            (sparkline(series, SPARK_WIDTH), "cyan"),
            (
                f"  quality {format_number(last.gate_quality, '.2f')}"
                f" × information {format_number(last.gate_information, '.2f')}",
                "dim",
            ),
        )

    def _scores(self) -> Table:
        # A column a score: four of them fit 80 columns, and nothing moves when a number gets longer.
        names = self._raters()
        cells = []
        for name in names:
            now, change = self._score(name)
            style = "" if change is None or abs(change) < 0.005 else "green" if change > 0 else "red"
            moved = f" {format_signed(change, 2)}" if change is not None else ""
            cells.append(Text.assemble((format_number(now, ".2f"), "bold"), (moved, style)))
        grid = Table.grid(padding=(0, 3))
        for _ in names:
            grid.add_column(min_width=10, no_wrap=True)
        grid.add_row(*(Text(name, "dim") for name in names))
        grid.add_row(*cells)
        return grid

    def _divergence(self) -> Text:
        last = self._done[-1]
        return Text.assemble(
            ("text ", "dim"), format_number(last.kl_text, ".4f"),
            ("   speech ", "dim"), format_number(last.kl_speech, ".4f"),
            ("   nats a token from the start model", "dim"),
        )  # fmt: skip

    def _speed(self) -> Text:
        recent = self._done[-RECENT:]
        seconds = sum(i.seconds["total"] for i in recent)
        tokens = sum(i.tokens_text + i.tokens_speech for i in recent)
        return Text.assemble(
            (format_number(tokens / seconds if seconds > 0 else None, ",.0f"), "bold"),
            (" tokens/s   ", "dim"),
            (f"{seconds / len(recent):.1f}", "bold"),
            (" s an iteration", "dim"),
        )

    def _phases(self) -> Text:
        recent = self._done[-RECENT:]
        means = {phase: fmean(i.seconds.get(phase, 0.0) for i in recent) for phase in PHASES}
        whole = sum(means.values()) or 1.0
        # Ends are rounded and not lengths, so that the bar is always as long.
        ends = [0.0]
        for seconds in means.values():
            ends.append(ends[-1] + seconds / whole * PHASE_BAR)
        bar = Text()
        for style, (begin, end) in zip(PHASE_STYLES.values(), pairwise(ends), strict=True):
            bar.append("━" * (round(end) - round(begin)), style)
        for phase, seconds in means.items():
            bar.append("  ").append(f"{phase} ", PHASE_STYLES[phase]).append(f"{seconds:.1f}")
        return bar

    def _stage(self) -> RenderableType:
        what = self._progress.stage
        if what == RUNNING:
            # Never one more than there are: the last one may be done before the stage is over.
            number = min(self._number() + 1, self._progress.iterations_total)
            what = f"iteration {number} · {self._progress.phase}".removesuffix(" · ")
        return Spinner("dots", Text(what, "dim"), style="cyan")

    # ---- plain lines

    def _print_row(self, iteration: IterationStats) -> None:
        total = self._progress.iterations_total
        raters = self._raters()
        head = ["iteration", "λ", *raters, "KL text", "speech", "tokens/s", "seconds", "left"]
        seconds = iteration.seconds["total"]
        tokens = iteration.tokens_text + iteration.tokens_speech
        left = self._left()
        row = [
            f"{iteration.iteration}/{total}",
            f"{iteration.mix:.3f}",
            *(format_number(iteration.scores.get(name), ".2f") for name in raters),
            format_number(iteration.kl_text, ".4f"),
            format_number(iteration.kl_speech, ".4f"),
            format_number(tokens / seconds if seconds > 0 else None, ",.0f"),
            f"{seconds:.1f}",
            _clock(left) if left is not None else "–",
        ]
        widths = [9, 5, *(max(6, len(name)) for name in raters), 7, 6, 8, 7, 6]
        if self._rows % HEADER_EVERY == 0:
            self._print(" ".join(f"{cell:>{width}}" for cell, width in zip(head, widths, strict=True)))
        self._rows += 1
        self._print(" ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))

    def _line(self, words: str, style: str) -> None:
        self._print(Text.assemble((f"{_clock(self._elapsed()):>6}  ", "dim"), (words, style)))

    def _print(self, line: str | Text) -> None:
        # Not wrapped outside a terminal: a log keeps a line a line.
        self.console.print(line, markup=False, soft_wrap=self._live is None)

    # ---- numbers

    def _number(self) -> int:
        return self._done[-1].iteration if self._done else 0

    def _elapsed(self) -> float:
        return self._clock() - self._start

    def _left(self) -> float | None:
        """Seconds until the last iteration, from the median of the recent ones; None when there is nothing to say."""
        left = self._progress.iterations_total - self._number()
        return left * median(i.seconds["total"] for i in self._done[-RECENT:]) if self._done and left > 0 else None

    def _raters(self) -> list[str]:
        names = [name for name in self._done[-1].scores if len(self._shown) == 1 or name in self._shown]
        return [*(name for name in names if name == "total"), *(name for name in names if name != "total")]

    def _score(self, name: str) -> tuple[float | None, float | None]:
        """The score now and its change since the first iterations, both over a few iterations."""
        few = max(1, min(5, len(self._done) // 2))
        first, now = (
            [score for i in part if (score := i.scores.get(name)) is not None]
            for part in (self._done[:few], self._done[-few:])
        )
        change = fmean(now) - fmean(first) if first and now and len(self._done) > 1 else None
        return fmean(now) if now else None, change


def sparkline(series: Sequence[float], width: int) -> str:
    """The series as block characters, oldest first; a series longer than `width` is averaged in equal parts."""
    parts = min(width, len(series))
    ends = [round(part * len(series) / parts) for part in range(parts + 1)]
    means = [fmean(series[begin:end]) for begin, end in pairwise(ends)]
    low, high = min(means), max(means)
    middle, span = (low + high) / 2, max(high - low, SPARK_SPAN)
    shares = [(mean - middle) / span + 0.5 for mean in means]
    return "".join(SPARK[min(int(share * len(SPARK)), len(SPARK) - 1)] for share in shares)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
