"""A receiver of broadcast weights without an engine, in a process of its own.

    python -m tests.weight_sync.broadcasting SEAT

Says that it is up. Reads parcels from its input, one pickled after the other as hexadecimal lines, and takes each;
prints what it has after that: how many groups, the sum of all numbers, the name of its process group, and why something
is lacking.
"""

import json
import pickle
import sys

import torch

from weight_sync.broadcast import BroadcastError, BroadcastPeer


def main(name: str) -> None:
    print("up", flush=True)
    seat, has, key = BroadcastPeer(torch.device("cpu")), {}, None
    for line in sys.stdin:
        parcel = pickle.loads(bytes.fromhex(line))
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
        print(json.dumps({"groups": len(has), "total": total, "group": joined, "lacking": lacking}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
