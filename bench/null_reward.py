"""A reward that costs nothing, for both sides of the comparison with TRL: nothing is decoded, a length is a score."""

from pathlib import Path
from typing import Self

import numpy as np

from playground.codec import PlaygroundCodec
from reward.types import Score, SpokenReply
from speech.audio import Waveform


def score(length: int) -> float:
    """Of a reply of so many tokens: it differs within a group, so that there is something to learn from."""
    return 1.0 + 4.0 * (length % 2)


class NullRewardPool:
    name = "free"
    version = "free-1"

    def rate(self, spoken: SpokenReply) -> Score:
        return score(len(spoken.reply.token_ids))


class NullReward:
    """A codec with the playground's codes that makes no sound."""

    version = "silent-1"

    def __init__(self, codebook: int) -> None:
        self.codebook = codebook

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(PlaygroundCodec.load(path).codebook)

    def decode(self, codes: np.ndarray) -> Waveform | None:
        return None
