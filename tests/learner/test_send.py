"""What senders leave behind, in memory and in a folder: nothing that nobody holds."""

import subprocess
import sys

import torch
from safetensors.torch import load_file

from learner.send import DirectorySender, SharedMemorySender, memory_directory

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


def test_a_folder_has_the_newest_version_alone(tmp_path):
    folder = tmp_path / "run/weights"
    folder.mkdir(parents=True)
    (folder / "000007.safetensors").touch()  # of one that died
    sender = DirectorySender(folder)
    assert not list(folder.iterdir())
    for version in (7, 8):
        path, size = sender.send({"a": torch.full((3,), float(version))}, version)
        assert [path] == list(folder.iterdir())
        assert path.stat().st_size == size
        assert torch.equal(load_file(path)["a"], torch.full((3,), float(version)))
    sender.close()
    assert not folder.exists()
