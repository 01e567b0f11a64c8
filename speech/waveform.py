"""A sound and its sample rate, which never travel apart (method §7, rule 2)."""

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import BinaryIO

import numpy as np


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono audio."""

    samples: np.ndarray
    """float32 [T], in [-1, 1]."""
    rate: int
    """Samples per second, Hz."""

    def __post_init__(self) -> None:
        if self.samples.ndim != 1:
            raise ValueError(f"a waveform is mono, one axis; got shape {self.samples.shape}")
        if self.rate <= 0:
            raise ValueError(f"a sample rate is positive; got {self.rate}")

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def at_rate(self, rate: int) -> "Waveform":
        """The same sound at another sample rate (polyphase resampling)."""
        if rate == self.rate:
            return self
        from scipy.signal import resample_poly  # heavy import, needed here only

        common = gcd(rate, self.rate)
        samples = resample_poly(self.samples, rate // common, self.rate // common)
        return Waveform(samples.astype(np.float32), rate)

    def write(self, path: Path) -> None:
        """Writes 16-bit PCM WAV."""
        import soundfile

        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.clip(self.samples, -1.0, 1.0), self.rate, subtype="PCM_16")

    @classmethod
    def read(cls, path: Path | BinaryIO) -> "Waveform":
        """Reads any format libsndfile knows, from a file or what stands in one; several channels are averaged."""
        import soundfile

        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return cls(samples.mean(axis=1), rate)
