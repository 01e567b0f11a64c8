"""Sends weights to all workers at once, group by group, from where they are gathered. The receiving end is
`rollout/receive.py`; how both meet is in `cluster/collective.py`."""

import secrets
from collections.abc import Iterable

import torch
from torch import Tensor

from cluster.collective import Broken, Caller
from cluster.parcel import Call, Form, Parcel
from learner.send import Groups


class BroadcastSender:
    """Rank 0's. A version is announced, and then delivered as often as there are workers that lack it."""

    def __init__(self, host: str, device: torch.device) -> None:
        """host: address of this node. device: where the tensors are; so are those of all receivers."""
        self._host = host
        self._caller = Caller(host, device)
        self._own = secrets.token_hex(8)
        """Tells what comes from here from what an earlier learner sent under the same version."""

    def announce(self, groups: Groups, version: int, *, whole: bool) -> Parcel:
        """What will come. Its call names nobody yet."""
        forms = [
            tuple(Form(entry.name, str(entry.dtype).removeprefix("torch."), entry.shape) for entry in group)
            for group in groups
        ]
        return Parcel(
            version=version,
            size=sum(entry.size for group in groups for entry in group),
            whole=whole,
            groups=tuple(forms),
            key=f"{self._own}-{version}",
            call=Call(number=0, host=self._host, port=self._caller.port, seats=(), seconds=0.0),
        )

    def deliver(self, groups: Groups, weights: Iterable[dict[str, Tensor]], call: Call) -> str | None:
        """Broadcasts the tensors of each group, which are not touched when the next is there, to whoever comes. Returns
        why it broke off: the receivers find out too, and say so."""
        try:
            group, roll = self._caller.gather(call)
            for number, (entries, tensors) in enumerate(zip(groups, weights, strict=True)):
                if number >= roll.start:
                    group.broadcast([tensors[entry.name].contiguous() for entry in entries])
                del tensors  # or they would stay while the next group is gathered
        except Broken as error:
            return str(error)
        return None

    def close(self) -> None:
        self._caller.close()
