"""Broadcasts weights to all workers at once, through a process group beside torch's default one.

    root (the sender)                      peer (each tensor-parallel rank of each engine)
    ─────────────────                      ───────────────────────────────────────────────
    waits for the expected receivers  ◀──  announces itself, and the number of groups that it already has
    publishes the membership          ──▶  is a member, or fails and joins the next call
    ────────── both build the process group, or reuse the last one if its members are the same ──────────
    broadcasts group after group      ──▶  receives

They meet at torch's TCPStore, which the root serves. The group uses NCCL between GPUs and gloo between CPUs. Timeouts
are enforced here, not by the backend: no participant waits longer for another than the call allows. A group in which an
operation failed is discarded. Needs torch.

Receivers: `weight_sync/receiver.py` in the worker and `weight_sync/vllm_receiver.py` in the engine.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from weight_sync.senders import Groups
from weight_sync.update import BroadcastCall, TensorMeta, WeightUpdate

POLL_INTERVAL_S = 0.001
"""Interval between two checks for progress."""


SENDER = 0
"""Rank of the root."""


NUM_KEPT_MEMBERSHIPS = 8
"""Number of memberships kept in the store. No peer reads older ones."""


class BroadcastError(RuntimeError):
    """A participant is missing, died or timed out. The process group is unusable; its members may be fine."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The members of a broadcast."""

    group: str
    """Name of the process group: the number of the call that built it."""
    receivers: list[str]
    """In order of their ranks, which start at 1."""
    start: int
    """Number of tensor groups that all receivers have. The broadcast starts with the next."""


class ProcessGroup:
    """A process group for broadcasts. Building it waits for all ranks."""

    def __init__(
        self, store: TCPStore, name: str, rank: int, size: int, device: torch.device, address: str, timeout_s: float
    ) -> None:
        """Build the group.

        Args:
            address: Address of this process for the others.
            timeout_s: Maximum wait.

        Raises BroadcastError.
        """
        self.name, self._timeout_s = name, timeout_s
        self._group: torch.distributed.Backend | None = None
        meeting, limit = PrefixStore(f"group/{name}", store), timedelta(seconds=timeout_s)
        try:
            if device.type == "cuda":
                self._group = _nccl(meeting, rank, size, limit)
            else:
                options = ProcessGroupGloo._Options()
                options._devices = [ProcessGroupGloo.create_device(hostname=address)]
                options._timeout = limit
                self._group = ProcessGroupGloo(meeting, rank, size, options)
        except RuntimeError as error:
            raise BroadcastError(f"process group {name} of {size} was not formed: {_first_line(error)}") from error

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        """Broadcast contiguous tensors of any type from the root to all. Raises BroadcastError."""
        if self._group is None:
            raise BroadcastError(f"group {self.name} is closed")
        options = torch.distributed.BroadcastOptions()
        options.rootRank = SENDER
        deadline = time.monotonic() + self._timeout_s
        try:
            works = [self._group.broadcast([_flat(tensor)], options) for tensor in tensors if tensor.numel()]
            for work in works:
                while not work.is_completed():
                    if time.monotonic() > deadline:
                        raise BroadcastError(f"group {self.name}: a broadcast took more than {self._timeout_s:g} s")
                    time.sleep(POLL_INTERVAL_S)
                work.wait()
        except RuntimeError as error:
            self.close()
            if isinstance(error, BroadcastError):
                raise
            raise BroadcastError(f"group {self.name}: a broadcast failed: {_first_line(error)}") from error

    @property
    def usable(self) -> bool:
        """True if the group can broadcast again."""
        return self._group is not None

    def close(self) -> None:
        """Leave the group. Operations in which others wait for this process fail at once."""
        group, self._group = self._group, None
        if group is not None:
            with suppress(RuntimeError):
                group.abort()


class BroadcastRoot:
    """The sending end. Serves the store while it exists."""

    def __init__(self, host: str, device: torch.device) -> None:
        """host: Address of this node."""
        self._host, self._device = host, device
        listener = socket.create_server((host, 0))  # torch by itself would listen on all addresses
        self.port: int = listener.getsockname()[1]
        self._store = TCPStore(
            host, self.port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._group: ProcessGroup | None = None
        self._receivers: list[str] = []
        """Members of the group."""

    def wait_for_receivers(self, call: BroadcastCall) -> tuple[ProcessGroup, Membership]:
        """Wait for the expected receivers, and form a group of those that join in time. Raises BroadcastError."""
        joined = self._arrivals(call)
        receivers = [receiver for receiver in call.receivers if receiver in joined]
        if not receivers:
            raise BroadcastError(f"no receiver joined within {call.timeout_s:g} s: {', '.join(call.receivers)}")
        group = self._group
        if group is not None and not (
            group.usable
            and receivers == self._receivers
            and all(joined[receiver]["group"] == group.name for receiver in receivers)
        ):
            group.close()
            group = None
        name = group.name if group is not None else str(call.number)
        membership = Membership(
            group=name, receivers=receivers, start=min(joined[receiver]["num_received"] for receiver in receivers)
        )
        self._store.set(_membership_key(call.number), json.dumps(vars(membership)))
        if group is None:
            group = ProcessGroup(
                self._store, name, SENDER, 1 + len(receivers), self._device, self._host, call.timeout_s
            )
        self._group, self._receivers = group, receivers
        return group, membership

    def _arrivals(self, call: BroadcastCall) -> dict[str, dict]:
        """Return the announcement of each receiver that joins in time."""
        joined: dict[str, dict] = {}
        deadline = time.monotonic() + call.timeout_s
        while len(joined) < len(call.receivers) and time.monotonic() < deadline:
            for receiver in call.receivers:
                key = f"{call.number}/{receiver}"
                if receiver not in joined and self._store.check([key]):
                    joined[receiver] = json.loads(self._store.get(key))
                    self._store.delete_key(key)
            time.sleep(POLL_INTERVAL_S)
        self._store.delete_key(_membership_key(call.number - NUM_KEPT_MEMBERSHIPS))
        return joined

    def close(self) -> None:
        if self._group is not None:
            self._group.close()


class BroadcastPeer:
    """The receiving end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._group: ProcessGroup | None = None
        self._store: TCPStore | None = None
        self._address: tuple[str, int] | None = None
        """Address of the store."""

    def join(self, call: BroadcastCall, receiver: str, num_received: int) -> tuple[ProcessGroup, Membership]:
        """Join a call. num_received: Groups of tensors already received. Raises BroadcastError."""
        limit = timedelta(seconds=2 * call.timeout_s)  # the root may wait for other receivers
        address = (call.host, call.port)
        try:
            if self._store is None or address != self._address:
                self.leave()
                self._store = TCPStore(*address, is_master=False, wait_for_workers=False, timeout=limit)
                self._address = address
            held = self._group.name if self._group is not None and self._group.usable else None
            self._store.set(f"{call.number}/{receiver}", json.dumps({"num_received": num_received, "group": held}))
            self._store.wait([_membership_key(call.number)], limit)
            membership = Membership(**json.loads(self._store.get(_membership_key(call.number))))
        except RuntimeError as error:
            self.leave()
            raise BroadcastError(f"the broadcast did not start: {_first_line(error)}") from error
        if receiver not in membership.receivers:
            raise BroadcastError("the broadcast started before this receiver joined")
        if held != membership.group or self._group is None:
            if self._group is not None:
                self._group.close()
            rank, size = 1 + membership.receivers.index(receiver), 1 + len(membership.receivers)
            here = _own_address(*address)
            self._group = ProcessGroup(self._store, membership.group, rank, size, self._device, here, call.timeout_s)
        return self._group, membership

    def leave(self) -> None:
        """Discard the group and the connection to the store."""
        if self._group is not None:
            self._group.close()
        self._group = self._store = self._address = None


def _membership_key(number: int) -> str:
    """Return a membership's key in the store."""
    return f"{number}/membership"


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as bytes, uint8: neither backend supports every type."""
    return tensor.detach().view(-1).view(torch.uint8)


def _nccl(store: PrefixStore, rank: int, size: int, limit: timedelta) -> "torch.distributed.ProcessGroupNCCL":
    """Build NCCL's group without its error handling, which would end the process when a peer dies.

    `ProcessGroup.broadcast` enforces the timeout. NCCL reads the setting from the environment when it is built.
    """
    with _set("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"):
        options = torch.distributed.ProcessGroupNCCL.Options()
        options._timeout = limit
        return torch.distributed.ProcessGroupNCCL(store, rank, size, options)


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _own_address(host: str, port: int) -> str:
    """Return this machine's address on the route to another host. Sends nothing."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


def _first_line(error: Exception) -> str:
    """Return the first line of torch's error, which may include a stack."""
    return (str(error).splitlines() or [repr(error)])[0]


class BroadcastSender:
    """Rank 0's sender. A version is prepared once, and sent as often as workers need it."""

    def __init__(self, host: str, device: torch.device) -> None:
        """host: Address of this node. device: Device of the tensors, the same kind as the receivers'."""
        self._host = host
        self._root = BroadcastRoot(host, device)
        self._own = secrets.token_hex(8)
        """Distinguishes this sender's versions from equal version numbers of an earlier learner."""

    def prepare(self, groups: Groups, version: int, *, whole: bool) -> WeightUpdate:
        """Describe the update. `call.receivers` is filled in for each broadcast."""
        metadata = [
            tuple(TensorMeta(entry.name, str(entry.dtype).removeprefix("torch."), entry.shape) for entry in group)
            for group in groups
        ]
        return WeightUpdate(
            version=version,
            size=sum(entry.size for group in groups for entry in group),
            whole=whole,
            groups=tuple(metadata),
            key=f"{self._own}-{version}",
            call=BroadcastCall(number=0, host=self._host, port=self._root.port, receivers=(), timeout_s=0.0),
        )

    def send(self, groups: Groups, weights: Iterable[dict[str, Tensor]], call: BroadcastCall) -> str | None:
        """Broadcast the tensors of each group to the receivers that join. Return the reason if the broadcast failed.

        A group is not used after the next was requested. Receivers detect a failure themselves.
        """
        try:
            group, membership = self._root.wait_for_receivers(call)
            for number, (entries, tensors) in enumerate(zip(groups, weights, strict=True)):
                if number >= membership.start:
                    group.broadcast([tensors[entry.name].contiguous() for entry in entries])
                del tensors  # otherwise they would stay in memory while the next group is gathered
        except BroadcastError as error:
            return str(error)
        return None

    def close(self) -> None:
        self._root.close()
