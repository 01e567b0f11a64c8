"""Paths that tests share, and how a session of tests ends."""

import atexit
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cluster  # noqa: F401  before any test imports Ray, which reads then whether it may start by itself

ROOT = Path(__file__).resolve().parent.parent
STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process with what the tests found.

    This one process has held vLLM, Ray, Arrow and torch, which no process of Duet does. Once, a session in which all
    tests had passed ended in a segmentation fault as the interpreter was taken down; in whose code is not known.
    What Python itself does at exit is done here; the destructors of native libraries are not run.
    """
    status = config.stash.get(STATUS, None)
    if status is None:
        return  # no session: --help, --version
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Where a program is that is no part of the environment. Without it a test is skipped, but in CI it fails."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            reason = f"needs {name} on the path (Debian: apt-get install {name})"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        return path

    return find


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
