"""File senders: what they publish, and that they leave nothing behind in memory or in a folder."""

import subprocess
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from weight_sync.senders import DirectorySender, FileEntry, FileSender, SharedMemorySender
from weight_sync.update import WeightUpdate, memory_directory

DIES = """
import os, sys
from weight_sync.senders import SharedMemorySender
from tests.weight_sync.test_senders import send
print(send(SharedMemorySender(sys.argv[1]), 1, a=1.0).path, flush=True)
os.kill(os.getpid(), 9)
"""


def send(sender: FileSender, version: int, **values: float) -> WeightUpdate:
    """Send tensors of three equal numbers each."""
    weights = {name: torch.full((3,), value) for name, value in values.items()}
    groups = [[FileEntry.from_tensor(name, tensor) for name, tensor in weights.items()]]
    return sender.send(groups, [weights], version, whole=True)


def test_what_a_killed_sender_left_is_removed_by_the_next_and_the_living_keep_theirs(root, tmp_path):
    run = f"send-{tmp_path.name}"
    living = SharedMemorySender(run)
    held = send(living, 1, a=0.0).path
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
        update = send(sender, version, a=version)
        assert [update.path] == list(folder.iterdir())
        assert (update.version, update.size) == (version, update.path.stat().st_size)
        assert torch.equal(load_file(update.path)["a"], torch.full((3,), float(version)))
    sender.close()
    assert not folder.exists()


def test_memory_never_holds_two_versions(tmp_path):
    sender = SharedMemorySender(f"send-{tmp_path.name}")
    first = send(sender, 1, a=1.0).path
    pages, there = first.stat().st_ino, []

    def weights():
        there.extend(first.parent.iterdir())
        yield {"a": torch.full((3,), 2.0)}

    second = sender.send([[FileEntry("a", torch.float32, (3,))]], weights(), 2, whole=True).path
    assert [path.name for path in there] == ["part"]
    assert list(first.parent.iterdir()) == [second]
    assert second.stat().st_ino == pages
    assert load_file(second)["a"].tolist() == [2.0] * 3
    sender.close()


def test_tensors_of_every_kind_arrive_as_they_are(tmp_path):
    """Odd lengths before wider types, no dimensions, no elements, and non-contiguous tensors."""
    weights = {
        "odd": torch.arange(5, dtype=torch.bfloat16),
        "byte": torch.arange(3, dtype=torch.uint8),
        "wide": torch.arange(6, dtype=torch.float64).reshape(2, 3),
        "turned": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "half": torch.arange(4, dtype=torch.float16)[::2],
    }
    groups = [
        [FileEntry.from_tensor(name, weights[name]) for name in names]
        for names in (("odd", "byte", "wide"), list(weights)[3:])
    ]
    sender = DirectorySender(tmp_path / "weights")
    update = sender.send(groups, ({e.name: weights[e.name] for e in group} for group in groups), 1, whole=True)
    with safe_open(update.path, framework="pt") as file:
        assert set(file.keys()) == set(weights)
        for name, tensor in weights.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor), name
