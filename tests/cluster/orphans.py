"""A driver that starts a detached actor, as `duet train` starts its controller, and is killed at once.

python -m tests.cluster.orphans ADDRESS FOLDER TOLD    where TOLD is 1 for an actor that has been told to stop before
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import ray

from cluster import ray_cluster
from cluster.monitored_actor import MonitoredActor
from cluster.placement import Placement

WORK_SECONDS = 4.0


class Servant(MonitoredActor):
    """Holds a place."""

    def pid(self) -> int:
        return os.getpid()


class Master(MonitoredActor):
    """Has a servant, works for a while, and writes down that it got to the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.told = self.over = False
        ray_cluster.exit_with_driver(lambda: self.told and not self.over)
        self.folder, self.place = folder, Placement("servant", {"CPU": 1})
        self.servant = ray.remote(Servant).options(**self.place.options()).remote()

    def pids(self) -> list[int]:
        return [os.getpid(), ray.get(self.servant.pid.remote(), timeout=60)]

    def stop(self) -> None:
        self.told = True

    def work(self) -> None:
        time.sleep(WORK_SECONDS)
        assert ray.get(self.servant.pid.remote(), timeout=60) > 0  # it is as it was
        (self.folder / "done").touch()
        self.over = True


if __name__ == "__main__":
    address, folder, told = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1"
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    master = ray.remote(Master).options(num_cpus=0, max_concurrency=3, lifetime="detached").remote(folder)
    (folder / "pids").write_text(" ".join(map(str, ray.get(master.pids.remote(), timeout=60))))
    work = master.work.remote()
    if told:
        ray.get(master.stop.remote(), timeout=60)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
