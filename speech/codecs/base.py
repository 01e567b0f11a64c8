"""The codec: between waveforms and the speech codes of a vocabulary.

The speech encoder of families that hear features: what it makes of a sound stands in the slots of a prompt.

The codec of models that answer in text alone.
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from speech.audio import Waveform


@runtime_checkable
class Codec(Protocol):
    """Turns sound into codes and back. Implementations are named in the configuration as "module:Class"."""

    rate: int
    """Sample rate of decoded audio, Hz."""
    codebook: int
    """Number of codes."""
    tokens_per_second: float
    version: str
    """Changes whenever the same codes would sound different."""

    @classmethod
    def load(cls, path: Path) -> "Codec":
        """Reads the codec's own files. Raises InputError when they are missing or malformed.

        May take further arguments, by name: those of `reward.codec.kwargs`. A class that is heavy to load, or needs
        a GPU, can have a class method `check` with the same arguments, which looks at files alone, and then has rate
        and codebook as attributes of its own.
        """
        ...

    def encode(self, waveform: Waveform) -> np.ndarray:
        """int64 [S] codes in [0, codebook)."""
        ...

    def decode(self, codes: np.ndarray) -> Waveform:
        """Sound of int64 [S] codes, at the codec's rate."""
        ...


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
