"""How alike two voices sound: the cosine between embeddings of two sounds."""

from functools import lru_cache
from typing import Protocol

import numpy as np

from speech.audio import Waveform

RATE = 16000
FRAME, HOP = 400, 160
"""Samples: 25 ms every 10 ms."""
TRANSFORM = 512
BANDS = 40
COEFFICIENTS = 20
QUIET_DB = 30.0
"""Frames so far below the loudest are no speech."""


class Embedder(Protocol):
    """Makes a vector of a sound, near for sounds of one voice. Named in the configuration as "module:Class"."""

    version: str

    def embed(self, waveform: Waveform) -> np.ndarray:
        """float [D]. Raises ValueError for a sound that holds no speech."""
        ...


class CepstralStatistics:
    """The plain embedder that needs no model: mean and standard deviation of mel-frequency cepstra over speech frames.

    It is weak, and meant as such: it hears timbre, sentence and recording alike (channel, noise, codec). Of five
    synthetic voices with four sentences each, two sentences of one voice were nearer to each other than to those of
    another nine times in ten: cosines 0.84 to 0.97 within a voice, 0.57 to 0.99 between voices. It notices that a
    voice drifts; to tell speakers apart name a trained embedder. Cepstra 1 to 20 of 40 mel bands (Davis and
    Mermelstein 1980), each times its number, so that the first do not outweigh all others.
    """

    version = "cepstral-statistics-1"

    def embed(self, waveform: Waveform) -> np.ndarray:
        from scipy.fft import dct

        samples = waveform.at_rate(RATE).samples.astype(np.float64)
        if len(samples) < FRAME:
            raise ValueError("shorter than a frame")
        starts = np.arange(0, len(samples) - FRAME + 1, HOP)
        frames = samples[starts[:, None] + np.arange(FRAME)] * np.hanning(FRAME)
        power = np.abs(np.fft.rfft(frames, TRANSFORM)) ** 2
        loudness = power.sum(axis=1)
        if loudness.max() <= 1e-10:
            raise ValueError("silence")
        voiced = power[loudness > loudness.max() * 10.0 ** (-QUIET_DB / 10.0)]
        logs = np.log(np.maximum(voiced @ _filters().T, 1e-10 * loudness.max()))
        cepstra = dct(logs, type=2, norm="ortho", axis=1)[:, 1 : COEFFICIENTS + 1]
        weights = np.arange(1, COEFFICIENTS + 1, dtype=np.float64)
        return np.concatenate([cepstra.mean(axis=0) * weights, cepstra.std(axis=0) * weights])


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """Triangles evenly spread in mel, float64 [BANDS, TRANSFORM // 2 + 1]."""
    top = 2595.0 * np.log10(1.0 + RATE / 2 / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, top, BANDS + 2) / 2595.0) - 1.0)
    bins = np.fft.rfftfreq(TRANSFORM, 1.0 / RATE)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return np.maximum(0.0, np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """In [−1, 1]. Raises ValueError for vectors of different sizes and one of length 0."""
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"embeddings of shapes {one.shape} and {other.shape}")
    sizes = float(np.linalg.norm(one) * np.linalg.norm(other))
    if not sizes > 0:
        raise ValueError("an embedding of length 0")
    return float(np.clip(one @ other / sizes, -1.0, 1.0))
