"""The codec: between waveforms and the speech codes of a vocabulary."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from speech.waveform import Waveform


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

        May take further arguments, by name: those of `reward.codec.arguments`. A class that is heavy to load, or needs
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
