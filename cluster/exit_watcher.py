"""A small process beside a member that outlives it, to write down how it ended. Run by `cluster.monitored_actor`.

Ray does not say how a process of its own ended: the raylet discards exit statuses, and reports a SIGKILL, a crash and
os._exit alike as "connection error code 2. End of file". From Linux 6.15 on a pidfd keeps the exit status of a process
that somebody else has reaped (ioctl PIDFD_GET_INFO with PIDFD_INFO_EXIT, include/uapi/linux/pidfd.h); on older kernels
the status stays unknown. Nothing but the standard library is imported: it costs 10 MB and starts in 30 ms.
"""

import fcntl
import json
import os
import select
import struct
import sys
import time
from pathlib import Path

INFO_EXIT = 1 << 3
"""PIDFD_INFO_EXIT: the exit status is asked for, and, in the answer, is there."""
INFO_BYTES = 64
"""Size of the first version of struct pidfd_info: u64 mask, u64 cgroupid, 11 × u32, s32 exit_code."""
GET_INFO = 3 << 30 | INFO_BYTES << 16 | 0xFF << 8 | 11
"""_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)"""
LOOK_MILLISECONDS = 1000
"""How often the counter of out-of-memory kills is read while the member lives."""
REAP_SECONDS = 5.0
"""How long a dead process may stay unreaped, which is when its status can be read."""


def watch(pid: int, path: Path) -> None:
    """Waits for the end of process `pid`, then writes `path`: JSON of `status`, as waitpid gives it, or null when the
    kernel does not tell; and `oom_kills`, by how much the member's cgroup counted up in the last second or two, or
    null where there is no counter."""
    counter = oom_counter(pid)
    handle = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    before = last = read_counter(counter)
    while not poll.poll(LOOK_MILLISECONDS):
        before, last = last, read_counter(counter)
    status = exit_status(handle)
    after = read_counter(counter)
    kills = None if before is None or after is None else after - before
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"status": status, "oom_kills": kills, "time": time.time()}))
    aside.rename(path)


def exit_status(handle: int) -> int | None:
    """The status of the ended process behind a pidfd, in the encoding of waitpid, or None where it cannot be known."""
    deadline = time.monotonic() + REAP_SECONDS
    while True:
        info = bytearray(INFO_BYTES)
        struct.pack_into("Q", info, 0, INFO_EXIT)
        try:
            fcntl.ioctl(handle, GET_INFO, info)
        except OSError:  # ENOTTY before Linux 6.13; ESRCH before 6.15 once the process is reaped
            return None
        if struct.unpack_from("Q", info)[0] & INFO_EXIT:
            return struct.unpack_from("i", info, INFO_BYTES - 4)[0]
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def oom_counter(pid: int) -> Path | None:
    """The file that counts kills of the kernel's out-of-memory killer in the cgroup of a process."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            path = Path("/sys/fs/cgroup/memory") / group.lstrip("/") / "memory.oom_control"
        elif not controllers:
            path = Path("/sys/fs/cgroup") / group.lstrip("/") / "memory.events"
        else:
            continue
        if read_counter(path) is not None:
            return path
    return None


def read_counter(path: Path | None) -> int | None:
    if path is None:
        return None
    try:
        words = dict(line.split() for line in path.read_text().splitlines())
        return int(words["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


if __name__ == "__main__":
    watch(int(sys.argv[1]), Path(sys.argv[2]))
