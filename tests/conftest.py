"""Paths that tests share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def world() -> Path:
    """The shipped playground."""
    return ROOT / "playground" / "world"
