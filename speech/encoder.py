"""The speech encoder of families that hear features: what it makes of a sound stands in the slots of a prompt."""

from pathlib import Path
from typing import Protocol

import numpy as np

from speech.waveform import Waveform


class SpeechEncoder(Protocol):
    """Turns sound into frames. Implementations are named in the configuration as "module:Class" (`data.encoder`)."""

    version: str
    """Changes whenever the same sound would be heard otherwise."""

    @classmethod
    def load(cls, path: Path) -> "SpeechEncoder":
        """Reads the encoder's own files. Raises InputError when they are missing or malformed."""
        ...

    def encode(self, waveform: Waveform) -> np.ndarray:
        """float [F, W], as wide as the model's embeddings, whatever the waveform's rate."""
        ...
