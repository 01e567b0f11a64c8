"""A receiver of broadcast weights without an engine, in a process of its own.

It takes each parcel that comes through a pipe, and answers what it has after that: how many groups, the sum of all
numbers, the name of its process group, and why something is lacking.
"""

from multiprocessing.connection import Connection

import torch

from weight_sync.broadcast import BroadcastError, BroadcastPeer


def receive(name: str, parcels: Connection) -> None:
    parcels.send("up")
    seat, has, key = BroadcastPeer(torch.device("cpu")), {}, None
    while True:
        parcel = parcels.recv()
        if parcel.key != key:
            key, has = parcel.key, {}
        taken, lacking, joined = len(has), "", None
        try:
            group, roll = seat.join(parcel.call, name, taken)
            joined = group.name
            for number, forms in enumerate(parcel.groups[roll.start :], roll.start):
                tensors = [torch.empty(form.shape, dtype=getattr(torch, form.dtype)) for form in forms]
                group.broadcast(tensors)
                if number == len(has):
                    has[number] = {form.name: tensor for form, tensor in zip(forms, tensors, strict=True)}
        except BroadcastError as error:
            lacking = str(error)
        total = sum(tensor.double().sum().item() for group in has.values() for tensor in group.values())
        parcels.send({"groups": len(has), "total": total, "group": joined, "lacking": lacking})
