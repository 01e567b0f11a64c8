"""The driver of a job, as an actor sees it that must outlive it.

`ray job stop` gives a driver three seconds by default (RAY_JOB_STOP_WAIT_TIME_S) between SIGTERM and SIGKILL, and Ray
ends the actors of a job with its driver. An actor that has something to bring to an end is started detached, which
keeps Ray from doing so, and has to see to its own end.
"""

import os
import threading
import time
from collections.abc import Callable

import ray

LOOK_SECONDS = 2.0


def accompany(busy: Callable[[], bool]) -> None:
    """From now on this process, a detached actor, ends once its driver is gone and it is not `busy`. Its own actors end
    with it, as they do with everybody who started them. A process that is itself a driver has nobody to go with."""
    if ray.get_runtime_context().get_actor_id() is None:
        return

    def look() -> None:
        while busy() or not gone():
            time.sleep(LOOK_SECONDS)
        os._exit(0)

    threading.Thread(target=look, name="driver", daemon=True).start()


def gone() -> bool:
    """Whether Ray holds the driver of this process's job for dead."""
    from ray._private.state import state  # the public interface to this table needs Ray's dashboard

    try:
        job = ray.get_runtime_context().get_job_id()
        return any(row["JobID"] == job and row["IsDead"] for row in state.job_table())
    except Exception:  # nobody can say now, and whoever asks must live to ask again
        return False
