"""`duet doctor` as a user calls it."""

import json

import pytest

from deploy.preflight.finding import CheckReporter, Finding, Severity, count_by_severity, format_size, worst
from duet.__main__ import main
from duet.doctor import CHECK_WIDTH, SEVERITY_WIDTH, conclusion, format_finding, to_json
from tests.commands import duet


def test_the_playground_is_fine_from_end_to_end(root):
    done = duet(root, "doctor", "--json", "train.num_steps=3", "checkpoint.interval=3", seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["counts"]["warning"] == told["counts"]["error"] == 0, told
    assert {"configuration", "versions", "memory", "data", "codec", "rater", "start"} <= {
        finding["check"] for finding in told["findings"]
    }
    assert set(told["findings"][0]) == {"check", "state", "text", "remedy"}
    assert done.stderr == ""


def test_errors_are_lines_and_an_exit_code(root, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"extends: {root / 'configs/playground.yaml'}\nmodel: {{path: /nowhere}}\n")
    assert main(["doctor", "--config", str(tmp_path / "mine.yaml")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"duet doctor  {tmp_path / 'mine.yaml'}"
    at = next(number for number, line in enumerate(lines) if line.startswith("  error"))
    assert lines[at].startswith("  error    model           /nowhere is not a checkpoint with a tokenizer")
    assert lines[at + 1].strip() == "→ see docs/own-model.md"
    assert lines[-1].endswith("1 error: a run would fail")


def test_a_configuration_that_cannot_be_read_is_the_only_finding(tmp_path, capsys):
    assert main(["doctor", "--json", "--config", str(tmp_path / "none.yaml")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [finding["state"] for finding in told["findings"]] == ["error"]
    assert "none.yaml does not exist" in told["findings"][0]["text"]


VOICE = CheckReporter("disk")
LONG = VOICE.error("one two three four five six seven eight nine ten " * 3, "make room " * 10)


def test_a_line_is_broken_only_for_a_terminal():
    assert format_finding(LONG, None).plain.count("\n") == 1
    narrow = format_finding(LONG, 70).plain.splitlines()
    assert len(narrow) > 4
    assert all(len(line) <= 70 for line in narrow)
    indent = 2 + SEVERITY_WIDTH + CHECK_WIDTH
    assert all(line[:indent].isspace() for line in narrow[1:])
    assert narrow[0][:indent].split() == ["error", "disk"]
    assert format_finding(VOICE.fine("good"), 70).plain.split() == ["fine", "disk", "good"]


def test_keys_are_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", "a-key-that-must-stay-hidden")
    found = [VOICE.error("refused a-key-that-must-stay-hidden", "not a-key-that-must-stay-hidden")]
    assert "must-stay-hidden" not in format_finding(found[0], None).plain
    assert "must-stay-hidden" not in to_json("mine.yaml", found)


def test_states_in_order():
    found = [VOICE.fine("a"), VOICE.error("b"), VOICE.warning("c", "d"), VOICE.fine("e")]
    assert worst(found) is Severity.ERROR
    assert worst(found[:1]) is Severity.FINE
    assert worst([]) is Severity.FINE
    assert count_by_severity(found) == {Severity.FINE: 2, Severity.WARNING: 1, Severity.ERROR: 1}
    assert conclusion(found) == "2 fine, 1 warning, 1 error: a run would fail"
    assert conclusion(found[:1]) == "1 fine, 0 warnings, 0 errors: ready to run"
    assert isinstance(found[0], Finding)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1010, "1,010 B"),
        (7149024, "6.82 MiB"),
        (64 * 2**20, "64 MiB"),
        (1000 * 2**20, "1,000 MiB"),
        (2**30, "1 GiB"),
        (1.5 * 2**40, "1.5 TiB"),
    ],
)
def test_format_size(count, said):
    assert format_size(count) == said
