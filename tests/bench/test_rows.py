"""Rows of the table: medians, goals, and the page they are put into."""

import json
import subprocess

import psutil
import pytest

from bench import __main__ as command
from bench import page
from bench.rows import BenchRow, met, row


def test_a_row_is_the_median_with_its_spread():
    assert row("x", [0.9, 1.2, 1.0], "≥ 0.95") == BenchRow("x", 1.0, "≥ 0.95", True, (0.9, 1.2))
    assert not row("x", [2.2, 2.0, 2.1], "≤ 2.05").met
    assert row("x", [7.0], "").met


@pytest.mark.parametrize(
    ("ratio", "goal", "expected"),
    [
        (2.0, "≥ 2", True),
        (1.99, "≥ 2", False),
        (0.1, "≤ 0.1", True),
        (0.11, "≤ 0.1", False),
        (float("nan"), "≤ 1", False),
    ],
)
def test_goals(ratio, goal, expected):
    assert met(ratio, goal) is expected


def test_lines_of_a_part_take_the_place_of_its_older_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results.json")
    command.write([row("a", [1.0], "≥ 2"), row("b", [1.0], "")])
    fresh = [row("a", [3.0], "≥ 2")]

    def part(arguments, _):
        into = arguments[arguments.index("--into") + 1]
        with open(into, "w") as file:
            json.dump([vars(r) for r in fresh], file)

    monkeypatch.setattr(command, "run_whole", part)
    assert command.run("rollout", 1)
    assert [(r["name"], r["ratio"], r["met"]) for r in json.loads(command.RESULTS.read_text())] == [
        ("b", 1.0, True),
        ("a", 3.0, True),
    ]


def test_a_part_that_takes_too_long_ends_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PART_SECONDS", 1.0)
    child = tmp_path / "child"
    with (tmp_path / "log").open("wb") as log, pytest.raises(subprocess.TimeoutExpired):
        command.run_whole(["bash", "-c", f"sleep 60 & echo $! > {child}; wait"], log)
    assert not psutil.pid_exists(int(child.read_text())) or psutil.Process(int(child.read_text())).status() == "zombie"


def test_a_part_that_fails_is_told(tmp_path):
    with (tmp_path / "log").open("wb") as log, pytest.raises(subprocess.CalledProcessError):
        command.run_whole(["false"], log)


def test_only_what_stands_between_the_markers_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    page.PAGE.write_text(f"by hand\n{page.BEGIN}\nold\n{page.END}\nmore by hand\n")
    for _ in range(2):
        page.write_page([row("worker / plain", [0.9, 1.0, 0.97], "≥ 0.95"), row("ms", [1234.0], "")])
    text = page.PAGE.read_text()
    assert text.startswith(f"by hand\n{page.BEGIN}\n")
    assert text.endswith(f"{page.END}\nmore by hand\n")
    assert text.count("| worker / plain | 0.97 | ≥ 0.95 | yes | 0.9 – 1 |") == 1
    assert "| ms | 1,234 | 1,234 – 1,234 |" in text
    assert "old" not in text
