"""The codec of models that answer in text alone."""

from pathlib import Path

import numpy as np

from speech.waveform import Waveform


class NoSpeech:
    """Has no codes, so that there is nothing to decode."""

    rate = 16000
    codebook = 0
    tokens_per_second = 12.5
    version = "none"

    @classmethod
    def load(cls, path: Path) -> "NoSpeech":
        """path: not read."""
        return cls()

    def encode(self, waveform: Waveform) -> np.ndarray:
        raise ValueError("a model that answers in text alone has no codes")

    def decode(self, codes: np.ndarray) -> Waveform:
        if len(codes):
            raise ValueError(f"{len(codes)} codes for a codec without any")
        return Waveform(np.zeros(0, dtype=np.float32), self.rate)
