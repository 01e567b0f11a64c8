"""The driver of a job, as an actor sees it that must outlive it.

`ray job stop` gives a driver three seconds by default (RAY_JOB_STOP_WAIT_TIME_S) between SIGTERM and SIGKILL, and Ray
ends the actors of a job with its driver. An actor that has something to bring to an end is started detached, which
keeps Ray from doing so, and has to see to its own end.

A Ray cluster that is started here, for a run that needs no other machine: nothing of it can be reached from outside.

Ray listens on loopback alone when the address of its node is 127.0.0.1, but looks for another address by itself; so do
gloo, NCCL and vLLM. `docs/security.md` says what listens where.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

import ray

from common.errors import InputError


def join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"cluster.address: no Ray cluster can be joined at {address}: {error}") from error


LOOPBACK = "127.0.0.1"


def start(cpus: int, resources: Mapping[str, float]) -> None:
    """Starts a cluster of this one node, which asks for a token, and joins it. cpus, resources: what Ray may hand
    out."""
    # Left unset, Ray switches its token on. Whoever needs a cluster without one starts it himself and names it.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.update(_addresses())  # for all members: they inherit it
    # Says at every start that the cluster asks for a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    import ray
    from ray._private import ray_constants

    # What Ray does by itself on other systems; RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 is the same, if set before the first
    # import of Ray. `_node_ip_address="127.0.0.1"` is not: Ray puts the machine's own address in its place.
    several = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            resources=dict(resources),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several
    address = ray.util.get_node_ip_address()
    if address != LOOPBACK:
        ray.shutdown()
        raise RuntimeError(f"Ray started on {address}, where others can reach it, and not on {LOOPBACK}")


def _addresses() -> dict[str, str]:
    """Which interface the members' own libraries use."""
    # "lo" on Linux, "lo0" on macOS
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "VLLM_HOST_IP": LOOPBACK,
    }


LOOK_SECONDS = 2.0


def exit_with_driver(busy: Callable[[], bool]) -> None:
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
