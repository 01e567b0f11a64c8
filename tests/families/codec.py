"""A codec with any number of codes: a tone for each. It stands for decoders whose weights cannot be had here."""

import json
from pathlib import Path

import numpy as np

from common.errors import InputError
from speech.audio import Waveform


class Tones:
    """Each code is a tone of one frame, and is heard again as the nearest. `load` reads codec.json: rate, codebook,
    tokens_per_second."""

    def __init__(self, rate: int, codebook: int, tokens_per_second: float) -> None:
        self.rate, self.codebook, self.tokens_per_second = rate, codebook, tokens_per_second
        self.version = f"tones-{codebook}"
        self._frame = round(rate / tokens_per_second)
        self._lowest, self._highest = 200.0, 0.4 * rate

    @classmethod
    def load(cls, path: Path) -> "Tones":
        if not (path / "codec.json").is_file():
            raise InputError(f"{path / 'codec.json'} does not exist")
        return cls(**json.loads((path / "codec.json").read_text()))

    def encode(self, waveform: Waveform) -> np.ndarray:
        samples = waveform.at_rate(self.rate).samples
        frames = samples[: len(samples) // self._frame * self._frame].reshape(-1, self._frame)
        spectra = np.abs(np.fft.rfft(frames * np.hanning(self._frame), axis=1))
        heard = spectra.argmax(axis=1) * self.rate / self._frame
        share = (heard - self._lowest) / (self._highest - self._lowest)
        return np.clip(np.round(share * (self.codebook - 1)), 0, self.codebook - 1).astype(np.int64)

    def decode(self, codes: np.ndarray) -> Waveform:
        share = np.asarray(codes) / (self.codebook - 1)
        pitches = self._lowest + share * (self._highest - self._lowest)
        times = np.arange(self._frame) / self.rate
        return Waveform((0.5 * np.sin(2 * np.pi * pitches[:, None] * times)).astype(np.float32).ravel(), self.rate)
