"""Voices: espeak-ng spoken through ctypes, the callers' voices, the answering voice and the four manners.

espeak-ng (GPL-3) is loaded at run time from the `espeakng-loader` package and is never linked into or copied
with this project. One utterance takes 3 to 10 ms.

The library keeps its state in globals: one instance per process, NOT thread-safe. Callers in several threads
must hold a lock of their own; several processes are fine. The voice carries a slow flutter from one utterance
to the next, so a rendering depends on the renderings before it: building from the same seed in a fresh process
gives the same audio, saying the same line twice in one process does not.
"""

from __future__ import annotations

import ctypes
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from speech.audio import Waveform

# From espeak-ng's speak_lib.h.
_RETRIEVE_AUDIO = 1
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

RATES = (80, 450)
"""Words per minute that espeak-ng accepts."""
PITCHES = (0, 99)
"""espeak-ng's pitch scale: 50 is the voice's own pitch; it is no unit, see `ears.pitch` for semitones."""
ANSWERING = "en-us+f2"
"""The voice that the recogniser understands best, before and after the codec."""
CALLERS = ("en-us+f1", "en-us+f4", "en-us+f5")
"""Voices of one register, so that high and low mean the same for all of them."""
_RATES_OF = {"fast": (200, 220), "slow": (125, 139)}
_PITCHES_OF = {"high": (74, 82), "low": (18, 26)}


@dataclass(frozen=True)
class Manner:
    """A way of speaking on two axes. `name` is "high-fast", "low-slow" and so on."""

    pitch: str
    """"high" or "low"."""
    tempo: str
    """"fast" or "slow"."""

    @property
    def name(self) -> str:
        return f"{self.pitch}-{self.tempo}"

    def draw(self, generator: np.random.Generator) -> tuple[int, int]:
        """A (rate in words a minute, pitch on espeak-ng's scale) of this manner; both axes leave a clear gap."""
        rate = generator.integers(*_RATES_OF[self.tempo], endpoint=True)
        pitch = generator.integers(*_PITCHES_OF[self.pitch], endpoint=True)
        return int(rate), int(pitch)


MANNERS: tuple[Manner, ...] = tuple(Manner(pitch, tempo) for pitch in ("high", "low") for tempo in ("fast", "slow"))


def manner_named(name: str) -> Manner:
    """The manner called `name`; ValueError when there is none."""
    for manner in MANNERS:
        if manner.name == name:
            return manner
    raise ValueError(f"no manner {name!r}; known: {[m.name for m in MANNERS]}")


class _Espeak:
    """The loaded library. Use `say`; this class exists so that the callback outlives the call."""

    def __init__(self) -> None:
        import espeakng_loader  # here, so that task and raters import without the library

        self._library = ctypes.cdll.LoadLibrary(espeakng_loader.get_library_path())
        rate = self._library.espeak_Initialize(_RETRIEVE_AUDIO, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate <= 0:
            raise RuntimeError(f"espeak_Initialize failed ({rate}) with data at {espeakng_loader.get_data_path()}")
        self.rate: int = rate
        self._chunks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice = ""

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def say(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        if voice != self._voice:
            if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"espeak-ng has no voice {voice!r}")
            self._voice = voice
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks = []
        # Breath noise comes from the C library's generator, which the library seeds with the time of day.
        settings = f"{text}|{voice}|{rate}|{pitch}|{pitch_range}"
        self._library.espeak_ng_SetRandSeed(ctypes.c_ulong(zlib.crc32(settings.encode())))
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise ValueError(f"espeak-ng made no sound for {text!r}")
        return np.concatenate(self._chunks).astype(np.float32) / 32768.0


@cache
def _espeak() -> _Espeak:
    return _Espeak()


def trim(samples: np.ndarray, rate: int, margin: float = 0.02, threshold: float = 0.01) -> np.ndarray:
    """Cuts silence off both ends of `samples` [n], leaving `margin` seconds; silence is below `threshold`."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    if loud.size == 0:
        return samples
    pad = int(margin * rate)
    return samples[max(0, loud[0] - pad) : loud[-1] + pad]


def say(text: str, voice: str, rate: int, pitch: int, pitch_range: int = 50) -> Waveform:
    """Speaks `text`: trimmed mono float32 in [-1, 1] at espeak-ng's own 22,050 Hz.

    `voice` as espeak-ng names it ("en-us+f2"), `rate` in words a minute, `pitch` and `pitch_range` on
    espeak-ng's 0..99 scale. ValueError for values outside. Not thread-safe.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"rate {rate} words a minute is outside {RATES}")
    for value in (pitch, pitch_range):
        if not PITCHES[0] <= value <= PITCHES[1]:
            raise ValueError(f"pitch or range {value} is outside {PITCHES}")
    espeak = _espeak()
    return Waveform(trim(espeak.say(text, voice, rate, pitch, pitch_range), espeak.rate), espeak.rate)
