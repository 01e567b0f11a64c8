"""A detached actor whose driver is killed: it goes too, but for one that has been told to stop and is not there yet."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from cluster.ray_cluster import exit_with_driver
from tests.cluster.conftest import CPUS
from tests.cluster.orphans import WORK_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.xdist_group("cluster")]


def killed_driver(root: Path, cluster: Cluster, folder: Path, told: str) -> list[psutil.Process]:
    """What it leaves behind."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.orphans", cluster.address, str(folder), told],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    return [psutil.Process(int(pid)) for pid in (folder / "pids").read_text().split()]


@pytest.mark.parametrize(("told", "finishes"), [("0", False), ("1", True)])
def test_what_was_told_to_stop_comes_to_its_end_without_a_driver(root, cluster, tmp_path, told, finishes):
    left = killed_driver(root, cluster, tmp_path, told)
    gone, alive = psutil.wait_procs(left, timeout=WORK_SECONDS + 20)
    assert not alive, f"{len(gone)} of 2 have ended"
    assert (tmp_path / "done").exists() is finishes
    deadline = time.monotonic() + 20
    while (
        any(group["state"] != "REMOVED" for group in placement_group_table().values())
        or ray.available_resources().get("CPU") != CPUS  # Ray counts them again a moment later
    ):
        assert time.monotonic() < deadline, (placement_group_table(), ray.available_resources())
        time.sleep(0.2)


def test_a_driver_goes_with_nobody(cluster):
    exit_with_driver(lambda: False)
    assert "driver" not in [thread.name for thread in threading.enumerate()]


def test_who_has_left_a_cluster_starts_no_other(root):
    """As Ray would, open to the network."""
    program = "import cluster, ray; ray.put(1)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Ray has not been started" in done.stderr
