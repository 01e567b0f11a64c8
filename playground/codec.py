"""The playground's codec: k-means over log-mel frames one way, a table of spectra and phase reconstruction back.

    waveform ─▶ 16 kHz ─▶ log-mel, four 10 ms frames ─▶ nearest of K centroids ─▶ one code every 40 ms
    code ─▶ four mean log-magnitude spectra ─▶ starting phases from spectral peaks ─▶ a few Griffin-Lim rounds

Each code keeps the mean linear spectrum of the frames it stands for, so decoding needs no inversion of the mel
scale (0.1 s an utterance by non-negative least squares). Starting phases follow Beauregard, Harish and Wyse,
"Single pass spectrogram inversion" (2015); rounds follow Griffin and Lim (1984). Everything is single-threaded
numpy and deterministic: no random phases. A reply of 1.5 s decodes in about 10 ms.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import fft

from common.errors import InputError
from speech.audio import Waveform

RATE = 16000
WINDOW = 640
HOP = 160
FRAMES = 4
"""Frames of one token: 40 ms at a hop of 10 ms."""
MELS = 80
BINS = WINDOW // 2 + 1
TOKEN = HOP * FRAMES
FLOOR = 1e-4
"""Smallest magnitude: silence of espeak-ng is exactly zero, whose logarithm would dominate every distance."""
ROUNDS = 4
"""Griffin-Lim rounds; more changed nothing that the recogniser hears."""


@cache
def _window() -> np.ndarray:
    return np.sqrt(np.hanning(WINDOW + 1)[:-1]).astype(np.float32)


@cache
def mel_filters() -> np.ndarray:
    """float32 [MELS, BINS]: triangles with peaks evenly spaced on the mel scale (HTK formula), rows sum to 1."""
    top = 2595.0 * np.log10(1.0 + RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, MELS + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, RATE / 2, BINS)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    # The lowest triangles are narrower than a bin and may catch none: give them the bin nearest to their peak.
    for row in np.flatnonzero(filters.sum(axis=1) == 0.0):
        filters[row, np.abs(bins - edges[row + 1]).argmin()] = 1.0
    return (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)


def _spectra(samples: np.ndarray, frames: int) -> np.ndarray:
    """complex64 [frames, BINS] of `samples` that already hold WINDOW − HOP samples of padding."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP][:frames]
    return fft.rfft(windows * _window(), axis=1)


def magnitudes(waveform: Waveform) -> np.ndarray:
    """float32 [T·FRAMES, BINS] magnitude spectra of a waveform, T = its length in tokens, rounded up."""
    samples = waveform.at_rate(RATE).samples.astype(np.float32)
    tokens = max(1, -(-len(samples) // TOKEN))
    padding = (WINDOW - HOP) // 2
    padded = np.zeros(tokens * TOKEN + WINDOW - HOP, dtype=np.float32)
    padded[padding : padding + len(samples)] = samples
    return np.abs(_spectra(padded, tokens * FRAMES))


def features(magnitude: np.ndarray) -> np.ndarray:
    """float32 [T, 2·MELS]: log-mel of a token's first and second half, from magnitudes [T·FRAMES, BINS]."""
    mel = np.log(np.maximum(magnitude @ mel_filters().T, FLOOR))
    halves = mel.reshape(-1, 2, FRAMES // 2, MELS).mean(axis=2)
    return halves.reshape(-1, 2 * MELS)


def _starting_phases(magnitude: np.ndarray) -> np.ndarray:
    """float32 [F, BINS]: every bin turns at the frequency of the spectral peak it belongs to."""
    log = np.log(magnitude)
    left, centre, right = log[:, :-2], log[:, 1:-1], log[:, 2:]
    peak = np.zeros(log.shape, dtype=bool)
    peak[:, 1:-1] = (centre >= left) & (centre > right)
    curve = np.minimum(left - 2.0 * centre + right, -1e-6)
    offset = np.zeros_like(log)
    offset[:, 1:-1] = np.clip(0.5 * (left - right) / curve, -0.5, 0.5)
    bins = np.arange(log.shape[1])
    before = np.maximum.accumulate(np.where(peak, bins, 0), axis=1)
    after = np.minimum.accumulate(np.where(peak, bins, bins[-1])[:, ::-1], axis=1)[:, ::-1]
    nearest = np.where(bins - before <= after - bins, before, after)
    frequency = nearest + np.take_along_axis(offset, nearest, axis=1)
    # Neighbouring bins of one sinusoid have opposite signs under a window that starts at its first sample.
    return np.cumsum(frequency * (2.0 * np.pi * HOP / WINDOW), axis=0) + np.pi * (bins % 2)


def _overlap_add(spectra: np.ndarray) -> np.ndarray:
    """float32 samples of complex spectra [F, BINS]; the inverse of `_spectra` for consistent spectra."""
    frames = fft.irfft(spectra, n=WINDOW, axis=1).astype(np.float32) * _window()
    parts = frames.reshape(len(frames), WINDOW // HOP, HOP)
    blocks = np.zeros((len(frames) + WINDOW // HOP - 1, HOP), dtype=np.float32)
    for part in range(WINDOW // HOP):
        blocks[part : part + len(frames)] += parts[:, part]
    return blocks.ravel() / (WINDOW / HOP / 2)  # squared root-Hann windows at this hop sum to this constant


def invert(magnitude: np.ndarray, rounds: int = ROUNDS) -> np.ndarray:
    """float32 samples [F·HOP] whose magnitude spectra come near `magnitude` [F, BINS]."""
    spectra = magnitude * np.exp(1j * _starting_phases(magnitude)).astype(np.complex64)
    for _ in range(rounds):
        found = _spectra(_overlap_add(spectra), len(magnitude))
        spectra = magnitude * (found / np.maximum(np.abs(found), 1e-9))
    padding = (WINDOW - HOP) // 2
    return _overlap_add(spectra)[padding : padding + len(magnitude) * HOP]


class PlaygroundCodec:
    """Implements `speech.codecs.base.Codec`."""

    rate = RATE
    tokens_per_second = RATE / TOKEN

    def __init__(self, centroids: np.ndarray, spectra: np.ndarray) -> None:
        """centroids float32 [K, 2·MELS]; spectra float [K, FRAMES, BINS], log-magnitudes."""
        if centroids.ndim != 2 or centroids.shape[1] != 2 * MELS:
            raise InputError(f"centroids have shape {centroids.shape}, expected [K, {2 * MELS}]")
        if spectra.shape != (len(centroids), FRAMES, BINS):
            raise InputError(f"spectra have shape {spectra.shape}, expected {(len(centroids), FRAMES, BINS)}")
        self._centroids = centroids.astype(np.float32)
        self._spectra = spectra.astype(np.float16)
        self._half_norms = 0.5 * (self._centroids**2).sum(axis=1)
        self.codebook = len(centroids)
        digest = hashlib.sha256(self._centroids.tobytes() + self._spectra.tobytes()).hexdigest()
        self.version = f"playground-{self.codebook}-{ROUNDS}-{digest[:12]}"

    def encode(self, waveform: Waveform) -> np.ndarray:
        """int64 [T]: the code of every 40 ms, the last one padded with silence."""
        return self.nearest(features(magnitudes(waveform)))

    def nearest(self, vectors: np.ndarray) -> np.ndarray:
        """int64 [T]: index of the centroid nearest to each of float32 [T, 2·MELS]."""
        return (vectors @ self._centroids.T - self._half_norms).argmax(axis=1).astype(np.int64)

    def decode(self, codes: np.ndarray) -> Waveform:
        """Sound of codes [T], T·40 ms at 16 kHz. ValueError for codes outside the codebook or no codes at all."""
        codes = np.asarray(codes, dtype=np.int64)
        if codes.ndim != 1 or codes.size == 0:
            raise ValueError(f"codes are one axis with at least one entry; got shape {codes.shape}")
        if codes.min() < 0 or codes.max() >= self.codebook:
            outside = codes[(codes < 0) | (codes >= self.codebook)][0]
            raise ValueError(f"code {outside} is outside the codebook of {self.codebook}")
        magnitude = np.exp(self._spectra[codes].reshape(-1, BINS).astype(np.float32))
        return Waveform(np.clip(invert(magnitude), -1.0, 1.0), RATE)

    @classmethod
    def fit(cls, waveforms: list[Waveform], codebook: int, rounds: int, seed: int) -> PlaygroundCodec:
        """K-means (Lloyd, `rounds` rounds, k-means on a random start) over the tokens of all `waveforms`.

        A centroid that loses all its vectors moves to the vector that is worst represented.
        """
        spectra = np.concatenate([magnitudes(w) for w in waveforms])
        vectors = features(spectra)
        if len(vectors) < codebook:
            raise ValueError(f"{len(vectors)} tokens of audio cannot make {codebook} codes")
        generator = np.random.default_rng(seed)
        centroids = vectors[generator.choice(len(vectors), codebook, replace=False)]
        norms = (vectors**2).sum(axis=1)
        for _ in range(rounds):
            score = vectors @ centroids.T - 0.5 * (centroids**2).sum(axis=1)
            owner = score.argmax(axis=1)
            distance = norms - 2.0 * score[np.arange(len(vectors)), owner]
            centroids, counts = _means(vectors, owner, codebook)
            empty = np.flatnonzero(counts == 0)
            centroids[empty] = vectors[np.argsort(-distance)[: len(empty)]]
        owner = (vectors @ centroids.T - 0.5 * (centroids**2).sum(axis=1)).argmax(axis=1)
        log = np.log(np.maximum(spectra, FLOOR)).reshape(len(vectors), FRAMES * BINS)
        table, counts = _means(log, owner, codebook)
        used = counts > 0
        return cls(centroids[used], table[used].reshape(-1, FRAMES, BINS))

    def save(self, path: Path) -> None:
        """Writes the safetensors file that `load` reads."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"centroids": self._centroids, "spectra": self._spectra}, path)

    @classmethod
    def load(cls, path: Path) -> PlaygroundCodec:
        """Reads a codebook file, or `codebook.safetensors` in a folder. InputError when missing or malformed."""
        file = path / "codebook.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"codec file {file} does not exist")
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file} is not a safetensors file: {error}") from error
        for name in ("centroids", "spectra"):
            if name not in tensors:
                raise InputError(f"{file} has no tensor {name!r}; it holds {sorted(tensors)}")
        return cls(tensors["centroids"], tensors["spectra"])


def _means(vectors: np.ndarray, owner: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of vectors [N, D] by owner [N]: float32 [groups, D] (zero where empty) and the counts int64 [groups]."""
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=groups)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.zeros((groups, vectors.shape[1]), dtype=np.float32)
    filled = counts > 0
    sums[filled] = np.add.reduceat(vectors[order], starts[filled], axis=0)
    return sums / np.maximum(counts, 1)[:, None].astype(np.float32), counts
