"""What senders leave in memory: nothing that nobody holds."""

import subprocess
import sys

import torch

from learner.send import SharedMemorySender, memory_directory

DIES = """
import os, sys, torch
from learner.send import SharedMemorySender
print(SharedMemorySender(sys.argv[1]).send({"a": torch.ones(3)}, 1)[0], flush=True)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_sender_left_is_removed_by_the_next_and_the_living_keep_theirs(root, tmp_path):
    run = f"send-{tmp_path.name}"
    living = SharedMemorySender(run)
    held, _ = living.send({"a": torch.zeros(3)}, 1)
    died = subprocess.run(
        [sys.executable, "-c", DIES, run], cwd=root, capture_output=True, text=True, timeout=100, check=False
    )
    assert died.returncode == -9, died.stderr
    left = [path for path in memory_directory().glob(f"duet-{run}-*") if path != held.parent]
    assert [str(path / "000001.safetensors") for path in left] == died.stdout.split()
    other = SharedMemorySender(run)
    assert not left[0].exists()
    assert held.exists()
    other.close()
    living.close()
    assert not list(memory_directory().glob(f"duet-{run}-*"))
