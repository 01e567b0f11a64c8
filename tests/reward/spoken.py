"""Replies to rate, and an event loop that does not wait."""

import asyncio
import selectors
from collections.abc import Coroutine

import numpy as np

from reward.types import SpokenReply
from speech.audio import Waveform
from speech.types import Finish, Prompt, Reply


def spoken(text: str = "oh eight it is", answer: str = "eight", *, sound: int | None = 0, **facts: str) -> SpokenReply:
    """A reply as a listener gets it. sound: seed of its noise; None for none."""
    nothing = np.zeros(0, dtype=np.int32)
    samples = None if sound is None else np.random.default_rng(sound).uniform(-0.5, 0.5, 800).astype(np.float32)
    return SpokenReply(
        prompt=Prompt(id="p", token_ids=nothing, text="three plus five", facts={"answer": answer, **facts}),
        reply=Reply(
            prompt_id="p",
            index=0,
            token_ids=nothing,
            channels=nothing.astype(np.int8),
            logps=nothing.astype(np.float32),
            weight_version=0,
            finish=Finish.STOP,
            defect=None,
        ),
        text=text,
        waveform=None if samples is None else Waveform(samples, 16000),
    )


class _Leap(selectors.SelectSelector):
    """Move the clock to the next timer instead of waiting."""

    now = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout is None:
            raise RuntimeError("waits for ever: nothing is due, and nothing was ever to come")
        if not found:
            self.now += max(timeout, 0)
        return found


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a simulated clock."""

    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._leap.now


def at_once(doing: Coroutine) -> tuple[object, float]:
    """Return the result, and the seconds it would have taken."""
    loop = Loop()
    try:
        return loop.run_until_complete(doing), loop.time()
    finally:
        loop.close()
