"""Broadcast updates of an engine, with interruptions. vLLM is replaced by a recorder of calls."""

import pytest

from cluster.waiting import SyncInterrupted
from weight_sync.receiver import BroadcastReceiver
from weight_sync.update import BroadcastCall, TensorMeta, WeightUpdate

GROUPS = ((TensorMeta("a", "float32", (2, 3)),), (TensorMeta("b", "bfloat16", ()),))


def update(key: str, version: int, number: int) -> WeightUpdate:
    call = BroadcastCall(number=number, host="h", port=1, receivers=("w/0", "w/1"), timeout_s=1.0)
    return WeightUpdate(version=version, size=26, whole=False, groups=GROUPS, key=key, call=call)


class Asked:
    """Recorder of the calls to an engine of two tensor-parallel ranks, with their progress."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.progress = [(2, ""), (2, "")]

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: dict) -> None:
        update = request["update_info"]
        assert update["groups"] == [[["a", "float32", [2, 3]]], [["b", "bfloat16", []]]]
        assert (update["worker"], update["whole"]) == ("w", False)
        self.calls.append(f"update {update['call']['number']}")

    def collective_rpc(self, method: str) -> list[tuple[int, str]]:
        assert method == "broadcast_progress"
        return self.progress

    def finish_weight_update(self, weight_version: str) -> None:
        self.calls.append(f"finish {weight_version}")


def test_an_interrupted_update_resumes():
    asked = Asked()
    broadcasts = BroadcastReceiver(asked)
    broadcasts.receive(update("k-1", 1, 1), "w")
    asked.progress = [(1, "1 of 2 groups arrived: gone"), (2, "")]
    with pytest.raises(SyncInterrupted, match="1 of 2 groups arrived: gone"):
        broadcasts.receive(update("k-2", 2, 2), "w")
    assert broadcasts.is_partial
    asked.progress = [(2, ""), (2, "")]
    broadcasts.receive(update("k-2", 2, 3), "w")
    assert not broadcasts.is_partial
    assert asked.calls == ["start", "update 1", "finish 1", "start", "update 2", "update 3", "finish 2"]


def test_an_update_interrupted_before_its_first_group_can_be_replaced():
    asked = Asked()
    broadcasts = BroadcastReceiver(asked)
    asked.progress = [(0, "the broadcast did not start"), (0, "the broadcast did not start")]
    with pytest.raises(SyncInterrupted):
        broadcasts.receive(update("k-1", 1, 1), "w")
    assert not broadcasts.is_partial
    asked.progress = [(2, ""), (2, "")]
    broadcasts.receive(update("other-1", 1, 1), "w")
    assert asked.calls == ["start", "update 1", "update 1", "finish 1"]


def test_parts_of_two_updates_are_not_mixed():
    asked = Asked()
    broadcasts = BroadcastReceiver(asked)
    asked.progress = [(0, "gone"), (1, "gone")]  # one rank has a part
    with pytest.raises(SyncInterrupted):
        broadcasts.receive(update("k-1", 1, 1), "w")
    with pytest.raises(RuntimeError, match="engine holds a partial older weight update"):
        broadcasts.receive(update("other-1", 1, 1), "w")
    assert broadcasts.is_partial
    assert asked.calls == ["start", "update 1"]
