"""Paths that tests share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def reference(root) -> Callable[[str], list]:
    """Cases of a file of reference numbers by its name: those kept here, and those beside the repository if any."""

    def cases(name: str) -> list:
        paths = [root / "tests" / "reference" / name, root.parent / "shared" / "reference" / name]
        found = [case for path in paths if path.is_file() for case in json.loads(path.read_text())]
        assert found, f"no cases in {name}"
        return found

    return cases


@pytest.fixture(scope="session")
def world() -> Path:
    """The shipped playground."""
    return ROOT / "playground" / "world"
