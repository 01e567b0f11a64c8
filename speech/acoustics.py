"""How a reply sounds, in a few numbers that any voice has: pitch, tempo, silence, and what is heard of its text.

They watch over a run and train nothing. Hence plain NumPy and coarse frames, a fraction of a millisecond a reply: a
rater of a configuration can be as exact as it likes.
"""

from collections.abc import Sequence

import numpy as np

from speech.audio import Waveform

REFERENCE_HZ = 100.0
"""Pitch is in semitones above this frequency."""
LOWEST_HZ, HIGHEST_HZ = 75.0, 500.0
"""Of a voice."""
FRAME_SECONDS = 0.04
"""Three periods of the lowest voice."""
FRAMES = 16
"""Pitch is the median over so many frames, evenly spread, of those that are voiced."""
PITCH_RATE = 4000
"""Samples per second that are enough for pitch, Hz."""
VOICED = 0.5
"""Least autocorrelation, at the period and relative to none, of a voiced frame."""
OCTAVE = 0.9
"""The shortest period that comes so near to the best one is taken: its multiples fit as well."""
ENERGY_RATE = 100
"""Frames a second in which loudness is measured."""
SILENCE_DB = 35.0
"""A frame is silent when it is so far below the loudest."""


def measures(waveform: Waveform, text: str, heard: str | None = None) -> dict[str, float]:
    """What can be measured of a spoken text; what cannot has no entry.

    pitch_semitones     median over voiced frames, above 100 Hz
    silence             share of silent frames, in [0, 1]
    words_per_second    words of the text, as blanks divide it, over the time from the first sound to the last
    word_error          words to change, add and leave out to get from the text to what was heard, over the text's

    heard: by a recogniser; None where none was asked.
    """
    found: dict[str, float] = {}
    energy = _energy(waveform)
    words = text.split()
    peak = energy.max(initial=0.0)
    if 1e-10 < peak < np.inf:
        loud = np.flatnonzero(energy > peak * _below(SILENCE_DB))
        found["silence"] = 1.0 - len(loud) / len(energy)
        if words:
            found["words_per_second"] = len(words) / (float(loud[-1] - loud[0] + 1) / ENERGY_RATE)
        pitch = pitch_semitones(waveform)
        if pitch is not None:
            found["pitch_semitones"] = pitch
    if heard is not None and words:
        found["word_error"] = word_changes(words, heard.split()) / len(words)
    return found


def _below(decibels: float) -> float:
    """As a factor of energy."""
    return 10.0 ** (-decibels / 10.0)


def _energy(waveform: Waveform) -> np.ndarray:
    """float64 [frames of 10 ms]."""
    hop = max(1, waveform.rate // ENERGY_RATE)
    frames = len(waveform.samples) // hop
    return np.square(waveform.samples[: frames * hop].reshape(frames, hop), dtype=np.float64).mean(axis=1)


def pitch_semitones(waveform: Waveform) -> float | None:
    """Median fundamental frequency over voiced frames, by autocorrelation, in semitones above 100 Hz; None where no
    frame is voiced."""
    step = max(1, waveform.rate // PITCH_RATE)
    whole = waveform.samples[: len(waveform.samples) // step * step]
    samples = whole[::step].astype(np.float64)  # sums of so many, whatever that makes of the loudness
    for place in range(1, step):
        samples += whole[place::step]
    rate = waveform.rate / step
    length = int(FRAME_SECONDS * rate)
    if len(samples) < length:
        return None
    starts = np.linspace(0, len(samples) - length, min(FRAMES, 1 + len(samples) // length * 2)).astype(int)
    frames = samples[starts[:, None] + np.arange(length)]
    frames -= frames.mean(axis=1, keepdims=True)
    energy = np.square(frames).sum(axis=1)
    first, last = int(rate / HIGHEST_HZ), min(int(rate / LOWEST_HZ) + 1, length - 2)
    # One shift more at each end, for a peak has two neighbours.
    correlation = _correlation(frames[energy > energy.max() * _below(SILENCE_DB)], np.arange(first - 1, last + 2))
    left, middle, right = correlation[:, :-2], correlation[:, 1:-1], correlation[:, 2:]
    heights = np.where((middle >= left) & (middle > right), middle, -1.0)
    voiced = heights.max(axis=1, initial=-1.0) > VOICED
    if not voiced.any():
        return None
    heights = heights[voiced]
    places = (heights >= OCTAVE * heights.max(axis=1, keepdims=True)).argmax(axis=1)
    left, middle, right = (part[voiced][np.arange(len(places)), places] for part in (left, middle, right))
    # The top of the parabola through a peak and its neighbours; the curve is never flat there.
    periods = first + places + 0.5 * (left - right) / (left - 2.0 * middle + right)
    return 12.0 * float(np.log2(rate / np.median(periods) / REFERENCE_HZ))


def _correlation(frames: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Of each frame [F, T] with itself, shifted by some samples, in [−1, 1]: [F, shifts]."""
    length = frames.shape[1]
    products = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * length)) ** 2, 2 * length)[:, shifts]
    # Of a shift by k samples length − k pairs are left: the energies of the frame without its end and its beginning.
    squares = np.cumsum(np.square(frames), axis=1)
    energies = squares[:, length - 1 - shifts] * (squares[:, -1:] - squares[:, shifts - 1])
    return products / np.sqrt(np.maximum(energies, 1e-20))


def word_changes(said: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance in words, a row of its table at a time."""
    there = np.array([hash(word) for word in heard])
    places = np.arange(len(heard) + 1)
    row = places.copy()
    for count, word in enumerate(said, start=1):
        kept = row[:-1] + (there != hash(word))
        changed = np.concatenate([[count], np.minimum(kept, row[1:] + 1)])
        row = np.minimum.accumulate(changed - places) + places
    return int(row[-1])
