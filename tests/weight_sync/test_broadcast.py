"""Broadcasts to several processes: dead and slow receivers do not block the others."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.learner.processes import started
from tests.weight_sync.broadcasting import receive
from weight_sync.broadcast import BroadcastSender
from weight_sync.senders import FileEntry
from weight_sync.update import WeightUpdate

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("learner rank")]
SECONDS = 2.0
"""Maximum wait of one participant for another."""
GROUPS = [
    {"a": torch.arange(3 << 16, dtype=torch.float32), "scalar": torch.tensor(3.0), "none": torch.empty(0, 4)},
    {"b": torch.arange(64, dtype=torch.bfloat16).reshape(8, 8).t(), "c": torch.arange(9)},
    {"d": torch.ones(1 << 20), "e": torch.tensor([True, False])},
    {"f": torch.full((2, 2), 0.5, dtype=torch.float8_e4m3fn)},
]
TOTAL = sum(tensor.double().sum().item() for group in GROUPS for tensor in group.values())


class Receiver:
    """Runs `receive` in its own process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process, self._pipe = started(receive, name)

    def give(self, update: WeightUpdate) -> None:
        self._pipe.send(update)

    def answer(self) -> dict | str:
        return self._pipe.recv()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def receivers():
    made = [Receiver(name) for name in "abc"]
    assert [receiver.answer() for receiver in made] == ["up"] * 3
    yield made
    for receiver in made:
        receiver.end()


@pytest.fixture
def sender():
    made = BroadcastSender("127.0.0.1", torch.device("cpu"))
    yield made
    made.close()


class Calls:
    """Calls of one sender, numbered as by a learner group."""

    def __init__(self, sender: BroadcastSender) -> None:
        self.sender, self.number = sender, 0
        self.entries = [[FileEntry.from_tensor(name, tensor) for name, tensor in group.items()] for group in GROUPS]

    def __call__(self, version: int, receivers: list[Receiver], weights: Iterator, late: str = "") -> str | None:
        """Send a version to the receivers. late: further names to expect. Return the reason if the broadcast failed."""
        self.number += 1
        update = self.sender.prepare(self.entries, version, whole=True)
        receiver_names = (*(receiver.name for receiver in receivers), *late)
        call = replace(update.call, number=self.number, receivers=receiver_names, timeout_s=SECONDS)
        for receiver in receivers:
            receiver.give(replace(update, call=call))
        return self.sender.send(self.entries, weights, call)


def test_all_receivers_get_everything_and_a_dead_one_is_dropped(receivers, sender):
    call = Calls(sender)
    a, b, c = receivers
    # The process group is reused while its members stay the same.
    for version in (1, 2):
        assert call(version, receivers, iter(GROUPS)) is None
        found = [receiver.answer() for receiver in receivers]
        assert found == [{"groups": 4, "total": TOTAL, "group": "1", "reason": ""}] * 3

    def weights() -> Iterator[dict[str, torch.Tensor]]:
        yield from GROUPS[:2]
        b.end()
        yield from GROUPS[2:]

    begun = time.monotonic()
    reason = call(3, receivers, weights())
    assert reason is not None
    assert "group 1" in reason
    found = [receiver.answer() for receiver in (a, c)]
    assert time.monotonic() - begun < 2 * SECONDS
    assert all(answer["reason"] for answer in found)
    assert all(2 <= answer["groups"] < 4 for answer in found)
    # The survivors resume where they were, in a new group.
    assert call(3, [a, c], iter(GROUPS)) is None
    assert [receiver.answer() for receiver in (a, c)] == [{"groups": 4, "total": TOTAL, "group": "4", "reason": ""}] * 2


def test_missing_and_hanging_receivers_delay_the_others_by_the_timeout_only(receivers, sender):
    call = Calls(sender)
    a, b, _ = receivers
    begun = time.monotonic()
    assert call(2, [a, b], iter(GROUPS), late="x") is None
    assert SECONDS <= time.monotonic() - begun < SECONDS + 2
    assert [receiver.answer()["total"] for receiver in (a, b)] == [TOTAL] * 2

    os.kill(b.process.pid, signal.SIGSTOP)
    assert call(3, [a, b], iter(GROUPS)) is None  # without it
    assert a.answer()["total"] == TOTAL
    os.kill(b.process.pid, signal.SIGCONT)
    assert b.answer() == {
        "groups": 0, "total": 0, "group": None, "reason": "the broadcast started before this receiver joined",
    }  # fmt: skip

    def weights() -> Iterator[dict[str, torch.Tensor]]:
        yield from GROUPS[:2]
        os.kill(b.process.pid, signal.SIGSTOP)
        yield from GROUPS[2:]

    begun = time.monotonic()
    assert f"a broadcast took more than {SECONDS:g} s" in call(4, [a, b], weights())
    assert a.answer()["groups"] >= 2  # it may have all of them before the sender finds out
    assert time.monotonic() - begun < 3 * SECONDS
    assert call(4, [a], iter(GROUPS)) is None
    assert a.answer()["total"] == TOTAL
    assert call(5, [], iter(GROUPS), late="x") == f"no receiver joined within {SECONDS:g} s: x"
