"""DeepSpeed's operator is compiled by the environment's own tools, and a killed build blocks no later one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory

pytestmark = pytest.mark.e2e
OPERATOR = "deepspeed_shm_comm"
COMPILE = """
import shutil
from learner.setup import compile_deepspeed_op
compile_deepspeed_op()
print(shutil.which("ninja"))
"""


def compiled(root: Path, seconds: float, **environment: str) -> str:
    """Load the operator in a process. Return the `ninja` that it found."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=root,
        env=os.environ | {"DS_ACCELERATOR": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def test_a_build_that_was_killed_does_not_hold_up_the_next(root, tmp_path):
    """Independent of the job's PATH, which may have no ninja, or another one that rebuilds everything."""
    assert compiled(root, 280) == str(Path(sys.executable).parent / "ninja")
    shutil.copytree(_get_build_directory(OPERATOR, verbose=False), tmp_path / OPERATOR)
    (tmp_path / OPERATOR / "lock").touch()
    compiled(root, 120, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert not (tmp_path / OPERATOR / "lock").exists()
