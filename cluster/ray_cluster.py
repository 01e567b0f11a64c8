"""Joins or starts a Ray cluster, and ends detached actors with their driver.

A cluster started here serves a run on one machine; other machines cannot reach it. Ray listens on loopback alone if
its node address is 127.0.0.1, but picks another address by default; so do gloo, NCCL and vLLM. `docs/security.md` lists
the ports.

`ray job stop` gives a driver three seconds by default (RAY_JOB_STOP_WAIT_TIME_S) between SIGTERM and SIGKILL, and Ray
ends the actors of a job with its driver. An actor that must finish something first is started detached, and ends itself
(`exit_with_driver`).
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

import ray

from common.errors import InputError

LOOPBACK = "127.0.0.1"
POLL_INTERVAL_S = 2.0


def join(address: str) -> None:
    """Join the Ray cluster at an address."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"cluster.address: cannot join a Ray cluster at {address}: {error}") from error


def start(num_cpus: int, resources: Mapping[str, float]) -> None:
    """Start a cluster of this node alone, which requires a token, and join it. num_cpus, resources: the node's totals
    for Ray."""
    # Ray requires a token if this is unset. To run without one, start a cluster and name it in cluster.address.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.update(_loopback_environment())  # inherited by all actors
    # Logs at every start that the cluster requires a token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    from ray._private import ray_constants

    # Ray's default on other systems; RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 has the same effect, if set before the first
    # import of Ray. `_node_ip_address="127.0.0.1"` has not: Ray replaces it by the machine's address.
    enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            resources=dict(resources),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
    address = ray.util.get_node_ip_address()
    if address != LOOPBACK:
        ray.shutdown()
        raise RuntimeError(f"Ray started on {address}, which other machines can reach, instead of {LOOPBACK}")


def _loopback_environment() -> dict[str, str]:
    """Return the variables that keep the actors' libraries on the loopback interface."""
    # "lo" on Linux, "lo0" on macOS
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "VLLM_HOST_IP": LOOPBACK,
    }


def exit_with_driver(busy: Callable[[], bool]) -> None:
    """End this process, a detached actor, once its driver is dead and `busy` returns False. Its own actors end with it.
    Does nothing in a driver."""
    if ray.get_runtime_context().get_actor_id() is None:
        return

    def watch() -> None:
        while busy() or not driver_is_dead():
            time.sleep(POLL_INTERVAL_S)
        os._exit(0)

    threading.Thread(target=watch, name="driver", daemon=True).start()


def driver_is_dead() -> bool:
    """Return True if Ray reports the driver of this process's job as dead."""
    from ray._private.state import state  # the public interface to this table needs Ray's dashboard

    try:
        job = ray.get_runtime_context().get_job_id()
        return any(row["JobID"] == job and row["IsDead"] for row in state.job_table())
    except Exception:  # unknown at the moment; the caller asks again
        return False
