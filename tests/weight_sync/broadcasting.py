"""A receiver of broadcasts without an engine, in its own process.

It receives each update that a pipe delivers. It answers with the number of groups that it has, the sum of all numbers,
the name of its process group, and the reason if a group is missing.
"""

from multiprocessing.connection import Connection

import torch

from weight_sync.broadcast import BroadcastError, BroadcastPeer


def receive(name: str, updates: Connection) -> None:
    updates.send("up")
    peer, has, key = BroadcastPeer(torch.device("cpu")), {}, None
    while True:
        update = updates.recv()
        if update.key != key:
            key, has = update.key, {}
        taken, reason, joined = len(has), "", None
        try:
            group, membership = peer.join(update.call, name, taken)
            joined = group.name
            for number, metadata in enumerate(update.groups[membership.start :], membership.start):
                tensors = [torch.empty(meta.shape, dtype=getattr(torch, meta.dtype)) for meta in metadata]
                group.broadcast(tensors)
                if number == len(has):
                    has[number] = {meta.name: tensor for meta, tensor in zip(metadata, tensors, strict=True)}
        except BroadcastError as error:
            reason = str(error)
        total = sum(tensor.double().sum().item() for group in has.values() for tensor in group.values())
        updates.send({"groups": len(has), "total": total, "group": joined, "reason": reason})
