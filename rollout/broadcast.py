"""Takes weights that the learner broadcasts into one engine. The other ends are `learner/broadcast.py` and, inside the
engine, `rollout/receive.py`."""

from dataclasses import asdict
from typing import Any

from cluster.parcel import Parcel
from cluster.waiting import Interrupted


class Broadcasts:
    """The updates of an engine. One that is interrupted stays open, and goes on when the same is broadcast again."""

    def __init__(self, llm: Any) -> None:
        """llm: vLLM's engine, with `rollout.receive.Receiver`."""
        self._llm = llm
        self._open = False
        """Whether an update is."""
        self._key: str | None = None
        """Of the parcel that the engine has a part of."""

    @property
    def half(self) -> bool:
        """Whether the engine has a part of some weights: it must not compute."""
        return self._key is not None

    def take(self, parcel: Parcel, worker: str) -> None:
        """Raises Interrupted where not all of it came, and RuntimeError where the engine has a part of another."""
        if self._key not in (None, parcel.key):
            raise RuntimeError("a part of older ones is in, and the rest does not come any more")
        if not self._open:
            self._llm.start_weight_update()
            self._open = True
        call = asdict(parcel.call) if parcel.call is not None else {}
        groups = [[[form.name, form.dtype, list(form.shape)] for form in group] for group in parcel.groups]
        update = {"groups": groups, "call": call, "worker": worker, "whole": parcel.whole, "scale": parcel.scale}
        self._key = parcel.key  # whatever happens from here on
        self._llm.update_weights({"update_info": update})
        progress = self._llm.collective_rpc("broadcast_progress")
        if not any(taken for taken, _ in progress):
            self._key = None
        if lacking := [reason for _, reason in progress if reason]:
            raise Interrupted(lacking[0])
        self._llm.finish_weight_update(weight_version=str(parcel.version))
        self._open, self._key = False, None
