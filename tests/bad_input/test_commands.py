"""Malformed input as a user gives it: exit code 2, one line, no traceback, nothing written, no Ray started."""

import pytest

from tests.bad_input.door import Setup, contents
from tests.commands import duet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


CASES = {
    "a configuration that never ends": (
        lambda s: s.config.write_text("run: &a [*a]\n"), ["train"], "mine.yaml", "contains itself",
    ),
    "a rater that takes no arguments": (
        lambda s: None,
        ["train", "reward.functions=[{name: answer, target: 'playground.raters:Answer', kwargs: {key: 1}}]",
         "reward.weights={answer: 1}", "reward.composites={}"],
        "reward.functions.answer", "'key'",
    ),
    "an override of a terminal's commands": (
        lambda s: None, ["train", "run.name=\x1b[31m\nred"], "run.name", r"\x1b[31m red",
    ),
    "pairs of nothing": (
        lambda s: (s.folder / "scored.jsonl").write_bytes(b"\xff"), ["pairs"], "scored.jsonl", "UTF-8",
    ),
}  # fmt: skip
"""By name: what is broken, the command, and what must be said of it."""


@pytest.mark.parametrize("name", CASES)
def test_commands(setup: Setup, root, name: str):
    change, (command, *arguments), *mentions = CASES[name]
    change(setup)
    if command == "pairs":
        arguments = ["--scored", str(setup.folder / "scored.jsonl"), "--out", str(setup.folder / "out.parquet")]
    before = contents(setup.folder)
    done = duet(root, command, "--config", str(setup.config), *arguments, seconds=60)
    assert done.returncode == 2, done.stderr
    [said] = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert all(words in said for words in mentions), said
    assert done.stdout == ""
    assert contents(setup.folder) == before
