"""docs/rules.md says which tests hold which rule of method §7; the tests' docstrings say the same."""

import ast
import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def table(root) -> set[tuple[int, str]]:
    """(rule, file::test) of every test in the page's table."""
    rows = re.findall(r"^\| (\d)\. .*$", (root / "docs/rules.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [str(rule) for rule in range(1, 10)]
    found = set()
    for line in (root / "docs/rules.md").read_text(encoding="utf-8").splitlines():
        if rule := re.match(r"\| (\d)\. ", line):
            tests = re.findall(r"`(tests/\S+::\w+)`", line)
            assert tests, line
            found |= {(int(rule[1]), test) for test in tests}
    return found


@pytest.fixture(scope="module")
def docstrings(root) -> set[tuple[int, str]]:
    """The same of every test whose docstring names a rule of method §7."""
    return {
        (int(rule), f"{path.relative_to(root).as_posix()}::{name}")
        for path in sorted((root / "tests").rglob("test_*.py"))
        for name, text in documented(path).items()
        if "Method §7" in text
        for rule in re.findall(r"\brule (\d)\b", text)
    }


def documented(path: Path) -> dict[str, str]:
    """Docstrings by test."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_test_of_the_table_exists_and_names_its_rule(table, docstrings):
    assert sorted(table - docstrings) == []


def test_every_test_that_names_a_rule_is_in_the_table(table, docstrings):
    assert sorted(docstrings - table) == []
