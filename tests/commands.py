"""The command line as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path


def duet(root: Path, *arguments: str, seconds: float = 280) -> subprocess.CompletedProcess:
    """`duet ARGUMENTS` in a process of its own, without a Ray cluster to join."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "controller", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
