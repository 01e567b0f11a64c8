"""Paths that tests share."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
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


@pytest.fixture(scope="session")
def few(world, tmp_path_factory) -> Path:
    """A short evaluation set."""
    path = tmp_path_factory.mktemp("data") / "few.parquet"
    pq.write_table(pq.read_table(world / "data/held_out.parquet").slice(0, 32), path)
    return path
