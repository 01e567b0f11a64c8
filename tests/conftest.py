"""Paths that tests share, how two processes share the tests, and how a session of tests ends."""

import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cluster  # noqa: F401  before any test imports Ray, which reads then whether it may start by itself
from tests.two_ends import TwoEnds, is_heavy

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "cluster", "common", "configs", "controller", "data", "deploy", "duet", "evaluation", "learner", "observability",
    "playground", "reward", "rollout", "speech", "weight_sync",
)  # fmt: skip
"""Packages of the product."""
SESSION = pytest.StashKey[pytest.Session]()
RAY_FOLDER = pytest.StashKey[Path]()
NO_FOLDER = "/dev/null/this test starts Ray - mark it e2e, families or operate"
"""Where no folder can be made."""
NO_INTERFACE = "mark-test-e2e"
"""The name of no network interface; the system cuts names at 15 characters."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        # torch has not been imported yet. Threads of several processes, as many in each as there are processors, spin
        # while they wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Each process keeps Ray's files, and the address of the newest cluster among them, apart from those of others.
    # The name is short: Ray's sockets lie below it, and their paths may have 107 characters.
    config.stash[RAY_FOLDER] = Path(tempfile.mkdtemp(prefix="ray-"))
    if config.getoption("numprocesses", None) and not (Path.home() / ".ray/auth_token").exists():
        # Ray makes its token at its first start. Of two first starts at once, one would lose its token to the other.
        from ray._private.authentication.authentication_token_setup import generate_and_save_token

        generate_and_save_token()


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> TwoEnds | None:
    return TwoEnds(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist, files with heavy tests come first: see TwoEnds."""
    if hasattr(config, "workerinput"):
        heavy = {item.path for item in items if is_heavy(item)}
        items.sort(key=lambda item: item.path not in heavy)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keeps markers right: where a test carries none of e2e, families and operate, nothing heavy starts.

    Ray makes a folder when it starts. vLLM and DeepSpeed start torch.distributed with gloo, which looks for a network
    interface. Both read the environment, which processes that the test starts inherit.
    """
    with pytest.MonkeyPatch.context() as patch:
        if is_heavy(item):
            patch.setenv("RAY_TMPDIR", str(item.config.stash[RAY_FOLDER]))
        else:
            patch.setenv("RAY_TMPDIR", NO_FOLDER)
            patch.setenv("GLOO_SOCKET_IFNAME", NO_INTERFACE)
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process with what the tests found.

    This one process has held vLLM, Ray, Arrow and torch, which no process of Duet does. Once, a session in which all
    tests had passed ended in a segmentation fault as the interpreter was taken down; in whose code is not known.
    What Python itself does at exit is done here; the destructors of native libraries are not run. A worker of
    pytest-xdist has sent all its reports by now, and its controller takes the exit status from them.
    """
    session = config.stash.get(SESSION, None)
    if session is None:  # --help, --version
        shutil.rmtree(config.stash[RAY_FOLDER], ignore_errors=True)
        return
    atexit._run_exitfuncs()
    if session.exitstatus != pytest.ExitCode.TESTS_FAILED:  # else Ray's logs may say why
        shutil.rmtree(config.stash[RAY_FOLDER], ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(session.exitstatus))


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
