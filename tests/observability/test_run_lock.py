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
claim = RunLock.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_is_worked_on_is_refused_until_its_process_is_gone(root, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on .*; wait until that has ended"):
            RunLock.take(tmp_path, seconds=0.0)
        holder.send_signal(signal.SIGKILL)
        # Its end need not be waited for here: whoever resumes a run right after a crash waits for a moment.
        RunLock.take(tmp_path, seconds=10.0).release()
    finally:
        holder.kill()
        holder.wait()


def test_a_claim_that_was_let_go_can_be_taken_again(tmp_path):
    RunLock.take(tmp_path, seconds=0.0).release()
    RunLock.take(tmp_path, seconds=0.0).release()
