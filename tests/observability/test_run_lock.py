"""One controller a run, for as long as its process lives."""

import signal
import subprocess
import sys

import pytest

from common.errors import InputError
from observability.run_directory import RunLock

HOLD = """
import sys
from pathlib import Path
from observability.run_directory import RunLock
claim = RunLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_locked_run_is_refused_until_its_process_has_ended(root, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on .*; wait until it has ended"):
            RunLock.acquire(tmp_path, timeout_s=0.0)
        holder.send_signal(signal.SIGKILL)
        # Acquiring waits for the process to end, as when a run resumes right after a crash.
        RunLock.acquire(tmp_path, timeout_s=10.0).release()
    finally:
        holder.kill()
        holder.wait()


def test_a_released_lock_can_be_acquired_again(tmp_path):
    RunLock.acquire(tmp_path, timeout_s=0.0).release()
    RunLock.acquire(tmp_path, timeout_s=0.0).release()
