"""Two processes share the tests: what pytest says at the end is what they found, and markers are kept right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "all pass": ("def test_one():\n    pass\n", pytest.ExitCode.OK, "1 passed"),
    "one fails": ("def test_one():\n    assert False\n", pytest.ExitCode.TESTS_FAILED, "1 failed"),
    "there is none": ("", pytest.ExitCode.NO_TESTS_COLLECTED, "no tests ran"),
    "a process dies": (
        "import os\ndef test_one():\n    os._exit(0)\n", pytest.ExitCode.TESTS_FAILED, "crashed while running",
    ),
    "Ray starts without a marker": (
        "import ray\ndef test_one():\n    ray.init(address='local', include_dashboard=False)\n",
        pytest.ExitCode.TESTS_FAILED, "this test starts Ray - mark it",
    ),
    "gloo starts without a marker": (
        "import torch.distributed as d\n"
        "def test_one(tmp_path):\n"
        "    d.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)\n",
        pytest.ExitCode.TESTS_FAILED, "mark-test-e2e",
    ),
}  # fmt: skip
"""By name: a file of tests, how pytest ends, and what it says."""


@pytest.mark.parametrize("name", CASES)
def test_the_exit_status_is_what_the_tests_found(root: Path, tmp_path: Path, name: str):
    content, status, said = CASES[name]
    (tmp_path / "test_made.py").write_text(content)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    e2e\n    families\n    operate\n")
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "1", "--dist", "loadgroup"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout, done.stdout
