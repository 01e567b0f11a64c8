"""A made run and its page, shared by the tests of the report."""

from pathlib import Path

import pytest

from duet.report import write
from observability.report.source import ReportSource
from tests.observability.report.made import World, whole


@pytest.fixture(scope="session")
def playground(root) -> World:
    return World(root)


@pytest.fixture(scope="session")
def run(root, playground, tmp_path_factory) -> Path:
    """A whole run of six iterations. To be read only."""
    directory = tmp_path_factory.mktemp("runs") / "made"
    whole(root, directory, playground)
    return directory


@pytest.fixture(scope="session")
def page(run) -> Path:
    """Its report."""
    return write(ReportSource.open(run), run.parent / "report.html")
