"""What a speech encoder made of a sound, on its way into the prompt of a model that hears features.

The frames lie in a file beside the data, as NumPy writes arrays: read where they are used, by every rollout worker and
learner rank, so that prompts stay as small as their ids. The encoder itself is not trained.

A sound and its sample rate, which never travel apart (method §7, rule 2).
"""

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.errors import InputError


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


def write_features(path: Path, frames: np.ndarray) -> None:
    """frames: float [F, W], as wide as the model's embeddings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(frames, dtype=np.float16 if frames.dtype == np.float16 else np.float32))


def read_features(path: str, frames: int) -> np.ndarray:
    """float32 [F, W] of so many frames. Raises InputError for another number, and for a file that is none."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} holds no features of a speech encoder: {error}") from error
    if found.ndim != 2 or len(found) != frames or found.dtype.kind != "f":
        raise InputError(
            f"{path} holds {found.dtype} {list(found.shape)}; the prompt has slots for {frames} frames, float [F, W]"
        )
    return found.astype(np.float32)
