"""Console output on a terminal and in a log."""

import io

from rich.console import Console

from observability.console import Display, final_table, sparkline
from observability.iteration import Progress
from observability.plots import plot_lambda, plot_scores
from observability.run_directory import RunDirectory, read_iterations
from tests.controller.examples import iteration


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)


def progress(*numbers: int, stage: str = "iteration") -> Progress:
    return Progress(stage=stage, iterations_total=5, iterations=[iteration(n) for n in numbers])


def test_a_log_gets_a_line_for_each_iteration_before_the_next_stage():
    output = console(terminal=False)
    with Display("run", output) as display:
        display.update(progress(stage="starting"))
        display.update(progress(1, 2))
        display.update(progress(3, stage="saving"))
        assert display.seen == 3
    lines = output.file.getvalue().splitlines()
    assert "starting" in lines[0]
    rows = [line for line in lines if "/5" in line]
    assert len(rows) == 3
    assert "0.210" in rows[0]
    assert lines.index(rows[2]) < next(i for i, line in enumerate(lines) if "saving" in line)
    assert "\x1b" not in output.file.getvalue()


def test_the_live_view_fits_ten_lines():
    output = console(terminal=True)
    with Display("run", output) as display:
        display.update(progress(1, 2, 3))
        view = Console(file=io.StringIO(), width=80, force_terminal=False)
        view.print(display.panel())
    shown = view.file.getvalue()
    assert len(shown.splitlines()) <= 10
    for word in ("λ", "0.230", "answer", "3/5"):
        assert word in shown


def test_the_live_view_keeps_its_lines_at_80_columns():
    scores = {"total": 3.16, "answer": 3.16, "heard": 4.01, "manner": 3.6}
    many = [iteration(n, scores={name: value + n / 40 for name, value in scores.items()}) for n in range(1, 41)]
    display = Display("playground", console(terminal=True))
    display.update(Progress(stage="iteration", iterations_total=40, iterations=many, phase="sync"))
    view = Console(file=io.StringIO(), width=80, force_terminal=False)
    view.print(display.panel())
    lines = view.file.getvalue().splitlines()
    assert len(lines) == 9
    assert "information 0.40" in next(line for line in lines if "λ" in line)
    assert next(line for line in lines if "+0.88" in line).count("+0.88") == len(scores)
    assert "iteration 40" in lines[-1]  # not 41


def test_sparkline_rises_with_its_series():
    line = sparkline([0.0, 0.5, 1.0], 3)
    assert len(line) == 3
    assert line[0] < line[1] < line[2]


def test_the_final_table_shows_the_change():
    before = {"held_out": {"answer_accuracy": 0.25, "answer": 2.0, "prompts": 400}}
    after = {"held_out": {"answer_accuracy": 0.55, "answer": 3.2, "prompts": 400}}
    output = console(terminal=False)
    output.print(final_table(before, after, {"held_out": {"answer_accuracy": 0.02}}))
    shown = output.file.getvalue()
    for value in ("25.0", "55.0", "+30.0", "3.9", "400"):
        assert value in shown


def test_the_final_table_shows_a_dash_for_what_was_not_measured():
    sets = {"held_out": {"answer_accuracy": None}}
    output = console(terminal=False)
    output.print(final_table(sets, {"held_out": {"answer_accuracy": 0.0}}))
    row = next(line for line in output.file.getvalue().splitlines() if "answer correct in text" in line)
    assert row.split()[-4:] == ["–", "0.0", "%", "–"]


def test_plots_are_drawn(tmp_path):
    records = RunDirectory.create(tmp_path / "run", "")
    for number in range(1, 9):
        records.add_iteration(iteration(number))
    table = read_iterations(tmp_path / "run")
    plot_lambda(table, tmp_path / "lambda.png")
    evaluations = {"before": {"answer": 2.0}, "after": {"answer": 3.0, "manner": None}}
    plot_scores(table, tmp_path / "scores.png", evaluations, ["answer", "heard", "manner"], (1.0, 5.0))
    for name in ("lambda.png", "scores.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name).stat().st_size > 20_000
