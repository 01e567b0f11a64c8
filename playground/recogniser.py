"""Ears: a recogniser, pitch and tempo measures, and a signal quality measure.

Licences: pocketsphinx BSD, praat-parselmouth GPL-3, speechmos (the DNSMOS models of Microsoft) MIT; all are loaded
at run time.
"""

from __future__ import annotations

import tempfile

import numpy as np

from reward.acoustic_raters.dnsmos import dnsmos
from speech.audio import Waveform

HEARING_RATE = 16000
"""Sample rate, Hz, of the recogniser's and of DNSMOS' models."""
REFERENCE_HZ = 100.0
"""Pitch is in semitones above this frequency."""


class Recogniser:
    """Hears which sentence of a small grammar was spoken; about 25 ms an utterance. Not thread-safe.

    pocketsphinx with its bundled English model. Free dictation with it is slow and weak; a grammar of what can be
    said hears nearly everything in clean audio. A grammar forces a sentence upon noise too, so hearing a sentence
    says what it resembles most, not that it was spoken.
    """

    def __init__(self, alternatives: list[list[str]]) -> None:
        """A sentence takes one word from each of `alternatives` in turn, lower case, in the CMU dictionary."""
        from pocketsphinx import Config, Decoder

        slots = " ".join("(" + " | ".join(words) + ")" for words in alternatives)
        with tempfile.NamedTemporaryFile("w", suffix=".gram") as grammar:
            grammar.write(f"#JSGF V1.0;\ngrammar replies;\npublic <reply> = {slots};\n")
            grammar.flush()
            # Beams narrower than the defaults: with those, a sentence often ends early and fillers swallow its last
            # word. Of 256 clean replies after the codec, 94 % were heard with the defaults, 98 % so.
            self._decoder = Decoder(
                Config(jsgf=grammar.name, samprate=HEARING_RATE, loglevel="FATAL", beam=1e-30, wbeam=1e-20, pbeam=1e-30)
            )

    def hear(self, waveform: Waveform) -> str:
        """The sentence heard, words separated by blanks; "" when none fits."""
        samples = waveform.at_rate(HEARING_RATE).samples
        # A little silence lets the last word end.
        padded = np.pad(samples, (0, HEARING_RATE // 20))
        pcm = (np.clip(padded, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
        # Its estimate of the noise goes on from one sound to the next; what is heard is to depend on this one alone.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""


def pitch(waveform: Waveform) -> float | None:
    """Median fundamental frequency in semitones above 100 Hz; None without voiced frames. 3 to 5 ms."""
    import parselmouth

    if waveform.seconds < 0.1:
        return None  # shorter than Praat's analysis window for 75 Hz
    sound = parselmouth.Sound(waveform.samples.astype(np.float64), waveform.rate)
    frequency = sound.to_pitch(pitch_floor=75.0, pitch_ceiling=600.0).selected_array["frequency"]
    voiced = frequency[frequency > 0.0]
    return None if voiced.size == 0 else float(12.0 * np.log2(np.median(voiced) / REFERENCE_HZ))


def active_seconds(waveform: Waveform, below_peak: float = 35.0) -> float:
    """Seconds from the first to the last 10 ms frame within `below_peak` dB of the loudest; 0 for silence."""
    hop = max(1, waveform.rate // 100)
    frames = len(waveform.samples) // hop
    if frames == 0:
        return 0.0
    energy = (waveform.samples[: frames * hop].reshape(frames, hop).astype(np.float64) ** 2).mean(axis=1)
    if energy.max() <= 1e-10:
        return 0.0
    loud = np.flatnonzero(energy > energy.max() * 10.0 ** (-below_peak / 10.0))
    return float((loud[-1] - loud[0] + 1) * hop / waveform.rate)


def signal_quality(waveform: Waveform) -> float:
    """DNSMOS P.835 speech signal quality (SIG), about 1..5. Some 0.2 s a clip: for samples, not for every reply.
    ValueError for empty audio."""
    return dnsmos(waveform, "sig")
