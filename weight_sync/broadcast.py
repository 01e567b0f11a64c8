"""A process group beside torch's default one, from the sender of weights to those that are there to take them.

    caller (sender)                       seat (a receiver, and each of its tensor-parallel ranks)
    ───────────────                       ──────────────────────────────────────────────────────
    waits for the seats it expects   ◀──  says that it is there, and how many groups of tensors it has
    calls the roll                   ──▶  is on it, or gives up and is expected the next time
    ───────────── both build the group, or go on with the last one if nobody has changed ─────────────
    broadcasts                       ──▶  receives

They meet at torch's TCPStore, which the caller serves. The group is NCCL's between GPUs and gloo's between CPUs; either
way its end of a wait is here, and a group in which something failed is thrown away. Nobody waits longer for another
than the call says. Needs torch.

Sends weights to all workers at once, group by group, from where they are gathered. The receiving end is
`weight_sync/vllm_receiver.py`; how both meet is in `weight_sync/broadcast.py`.

Takes weights that the learner broadcasts into one engine. The other ends are `weight_sync/broadcast.py` and, inside the
engine, `weight_sync/vllm_receiver.py`.
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

POLL_SECONDS = 0.001
"""Between two looks at what is under way."""


SENDER = 0
"""Rank of the caller."""


KEPT_ROLLS = 8
"""Older ones are removed from the store: nobody asks for them any more."""


class BroadcastError(RuntimeError):
    """Somebody did not come, or is gone, or took too long: the group is of no more use, its members may be."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Who is there."""

    group: str
    """Name of the group, after the call in which it was built."""
    seats: list[str]
    """In the order of their ranks, from 1 on."""
    start: int
    """Groups of tensors that all of them have; those after it are broadcast."""


class ProcessGroup:
    """Ranks that broadcast to one another. Building it waits for all of them."""

    def __init__(
        self, store: TCPStore, name: str, rank: int, size: int, device: torch.device, address: str, seconds: float
    ) -> None:
        """address: of this process, at which the others reach it. seconds: longest wait. Raises Broken."""
        self.name, self._seconds = name, seconds
        self._group: torch.distributed.Backend | None = None
        meeting, limit = PrefixStore(f"group/{name}", store), timedelta(seconds=seconds)
        try:
            if device.type == "cuda":
                self._group = _nccl(meeting, rank, size, limit)
            else:
                options = ProcessGroupGloo._Options()
                options._devices = [ProcessGroupGloo.create_device(hostname=address)]
                options._timeout = limit
                self._group = ProcessGroupGloo(meeting, rank, size, options)
        except RuntimeError as error:
            raise BroadcastError(f"group {name} of {size} did not come together: {_line(error)}") from error

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        """From the sender's memory into everybody's. Tensors of any type, without gaps. Raises Broken."""
        if self._group is None:
            raise BroadcastError(f"group {self.name} is broken")
        options = torch.distributed.BroadcastOptions()
        options.rootRank = SENDER
        deadline = time.monotonic() + self._seconds
        try:
            works = [self._group.broadcast([_flat(tensor)], options) for tensor in tensors if tensor.numel()]
            for work in works:
                while not work.is_completed():
                    if time.monotonic() > deadline:
                        raise BroadcastError(f"group {self.name}: a broadcast took more than {self._seconds:g} s")
                    time.sleep(POLL_SECONDS)
                work.wait()
        except RuntimeError as error:
            self.close()
            if isinstance(error, BroadcastError):
                raise
            raise BroadcastError(f"group {self.name}: a broadcast failed: {_line(error)}") from error

    @property
    def whole(self) -> bool:
        """Whether it can be used again."""
        return self._group is not None

    def close(self) -> None:
        """Leaves: what others still wait for from here fails at once."""
        group, self._group = self._group, None
        if group is not None:
            with suppress(RuntimeError):
                group.abort()


class BroadcastRoot:
    """The sender's end. Serves the store for as long as it lives."""

    def __init__(self, host: str, device: torch.device) -> None:
        """host: address of this node."""
        self._host, self._device = host, device
        door = socket.create_server((host, 0))  # torch, left to itself, would listen on every address
        self.port: int = door.getsockname()[1]
        self._store = TCPStore(host, self.port, is_master=True, wait_for_workers=False, master_listen_fd=door.detach())
        self._group: ProcessGroup | None = None
        self._seats: list[str] = []
        """Of the group."""

    def gather(self, call: BroadcastCall) -> tuple[ProcessGroup, Membership]:
        """Waits for those that are expected, and goes on with who is there. Raises Broken."""
        there = self._arrivals(call)
        seats = [seat for seat in call.seats if seat in there]
        if not seats:
            raise BroadcastError(f"nobody came within {call.seconds:g} s: {', '.join(call.seats)}")
        group = self._group
        if group is not None and not (
            group.whole and seats == self._seats and all(there[seat]["group"] == group.name for seat in seats)
        ):
            group.close()
            group = None
        name = group.name if group is not None else str(call.number)
        roll = Membership(group=name, seats=seats, start=min(there[seat]["taken"] for seat in seats))
        self._store.set(_roll(call.number), json.dumps(vars(roll)))
        if group is None:
            group = ProcessGroup(self._store, name, SENDER, 1 + len(seats), self._device, self._host, call.seconds)
        self._group, self._seats = group, seats
        return group, roll

    def _arrivals(self, call: BroadcastCall) -> dict[str, dict]:
        """What each of those that came says, by seat."""
        there: dict[str, dict] = {}
        deadline = time.monotonic() + call.seconds
        while len(there) < len(call.seats) and time.monotonic() < deadline:
            for seat in call.seats:
                key = f"{call.number}/{seat}"
                if seat not in there and self._store.check([key]):
                    there[seat] = json.loads(self._store.get(key))
                    self._store.delete_key(key)
            time.sleep(POLL_SECONDS)
        self._store.delete_key(_roll(call.number - KEPT_ROLLS))
        return there

    def close(self) -> None:
        if self._group is not None:
            self._group.close()


class BroadcastPeer:
    """A receiver's end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._group: ProcessGroup | None = None
        self._store: TCPStore | None = None
        self._door: tuple[str, int] | None = None
        """Of the store."""

    def join(self, call: BroadcastCall, seat: str, taken: int) -> tuple[ProcessGroup, Membership]:
        """Takes its place. taken: groups of tensors that it has already. Raises Broken."""
        limit = timedelta(seconds=2 * call.seconds)  # the caller waits for others meanwhile
        door = (call.host, call.port)
        try:
            if self._store is None or door != self._door:
                self.leave()
                self._store = TCPStore(*door, is_master=False, wait_for_workers=False, timeout=limit)
                self._door = door
            held = self._group.name if self._group is not None and self._group.whole else None
            self._store.set(f"{call.number}/{seat}", json.dumps({"taken": taken, "group": held}))
            self._store.wait([_roll(call.number)], limit)
            roll = Membership(**json.loads(self._store.get(_roll(call.number))))
        except RuntimeError as error:
            self.leave()
            raise BroadcastError(f"the roll was not called: {_line(error)}") from error
        if seat not in roll.seats:
            raise BroadcastError("the roll was called before it was there")
        if held != roll.group or self._group is None:
            if self._group is not None:
                self._group.close()
            rank, size = 1 + roll.seats.index(seat), 1 + len(roll.seats)
            here = _own_address(*door)
            self._group = ProcessGroup(self._store, roll.group, rank, size, self._device, here, call.seconds)
        return self._group, roll

    def leave(self) -> None:
        """Throws the group away, and what it knows of the caller."""
        if self._group is not None:
            self._group.close()
        self._group = self._store = self._door = None


def _roll(number: int) -> str:
    """Key of a roll in the store."""
    return f"{number}/roll"


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes, uint8, where they are: neither library knows every type."""
    return tensor.detach().view(-1).view(torch.uint8)


def _nccl(store: PrefixStore, rank: int, size: int, limit: timedelta) -> "torch.distributed.ProcessGroupNCCL":
    """NCCL's, which must not end the process when a peer is gone, as it does by default: the wait ends in `broadcast`.
    It reads that from the environment when it is built."""
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
    """Of this machine's addresses the one that the way to another leads over. Nothing is sent."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


def _line(error: Exception) -> str:
    """The first line of what torch says, which may go on with a stack."""
    return (str(error).splitlines() or [repr(error)])[0]


class BroadcastSender:
    """Rank 0's. A version is announced, and then delivered as often as there are workers that lack it."""

    def __init__(self, host: str, device: torch.device) -> None:
        """host: address of this node. device: where the tensors are; so are those of all receivers."""
        self._host = host
        self._caller = BroadcastRoot(host, device)
        self._own = secrets.token_hex(8)
        """Tells what comes from here from what an earlier learner sent under the same version."""

    def announce(self, groups: Groups, version: int, *, whole: bool) -> WeightUpdate:
        """What will come. Its call names nobody yet."""
        forms = [
            tuple(TensorMeta(entry.name, str(entry.dtype).removeprefix("torch."), entry.shape) for entry in group)
            for group in groups
        ]
        return WeightUpdate(
            version=version,
            size=sum(entry.size for group in groups for entry in group),
            whole=whole,
            groups=tuple(forms),
            key=f"{self._own}-{version}",
            call=BroadcastCall(number=0, host=self._host, port=self._caller.port, seats=(), seconds=0.0),
        )

    def deliver(self, groups: Groups, weights: Iterable[dict[str, Tensor]], call: BroadcastCall) -> str | None:
        """Broadcasts the tensors of each group, which are not touched when the next is there, to whoever comes. Returns
        why it broke off: the receivers find out too, and say so."""
        try:
            group, roll = self._caller.gather(call)
            for number, (entries, tensors) in enumerate(zip(groups, weights, strict=True)):
                if number >= roll.start:
                    group.broadcast([tensors[entry.name].contiguous() for entry in entries])
                del tensors  # or they would stay while the next group is gathered
        except BroadcastError as error:
            return str(error)
        return None

    def close(self) -> None:
        self._caller.close()
