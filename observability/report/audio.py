"""Speech tokens as sound that a browser plays: decoded by the run's own codec, small enough for one page."""

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from common.errors import InputError
from common.files import check_exists
from configs.schema import Config
from speech.audio import Waveform
from speech.codecs.base import Codec
from speech.registry import build_codec
from speech.vocabulary import Vocabulary

LOSSLESS, LOSSY = "audio/flac", "audio/mpeg"
BITS_KEPT = 0.7
"""Size of speech as FLAC, as a share of 16-bit samples (measured on the playground's codec)."""
LOSSY_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sample rates that MP3 knows, Hz."""
BARS = 56
"""Of the little picture of a sound."""


class ReportAudio:
    """The sounds of a page, each once. What was encoded is kept, for the next page of the same run."""

    def __init__(self, codec: Codec | None, vocabulary: Vocabulary | None, lack: str | None) -> None:
        """lack: why there is no sound."""
        self._codec, self._vocabulary, self.lack = codec, vocabulary, lack
        self._made: dict[tuple[str, str], dict | None] = {}

    @classmethod
    def of(cls, config: Config, vocabulary: Vocabulary | None) -> Self:
        """With the codec that the configuration names; silent, with the reason, where it cannot be loaded."""
        if vocabulary is None:
            return cls(None, None, "the checkpoint's tokenizer is not there")
        named = config.reward.codec
        try:
            codec = build_codec(named.target, named.kwargs)
        except InputError as error:
            return cls(None, None, str(error))
        except Exception as error:  # a codec of the user's own may raise anything
            return cls(None, None, f"{named.target} does not load {named.kwargs['path']}: {error!r}")
        return cls(codec, vocabulary, None)

    def form(self, replies: Sequence[np.ndarray], budget: int) -> str:
        """Lossless where all of it is then expected to stay within `budget` base64 characters, else lossy."""
        if self._codec is None or self._vocabulary is None:
            return LOSSLESS
        tokens = sum(len(self._vocabulary.codes(ids)) for ids in replies)
        samples = tokens / self._codec.tokens_per_second * self._codec.rate
        fits = samples * 2 * BITS_KEPT * 4 / 3 <= budget
        return LOSSLESS if fits or self._codec.rate not in LOSSY_RATES else LOSSY

    def sound(self, ids: np.ndarray | None, recording: Path | None, form: str) -> dict | None:
        """The speech tokens among ids [T]: key, seconds, bars and content; None without speech.

        What the codec does not decode has no content, but the reason under "lack". recording: a file of the run that
        has the same sound, which is taken where there is no codec.
        """
        if self._codec is None or self._vocabulary is None:
            return self._recorded(recording, form) if recording is not None else None
        if ids is None:
            return None
        codes = self._vocabulary.codes(ids)
        if not len(codes):
            return None
        key = hashlib.sha256(codes.tobytes()).hexdigest()[:16]
        if (key, form) not in self._made:
            self._made[key, form] = self._make(key, codes, form)
        return self._made[key, form]

    def _recorded(self, path: Path, form: str) -> dict | None:
        if not check_exists(path):
            return None
        key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if (key, form) not in self._made:
            self._made[key, form] = _clip(key, Waveform.read(path), form)
        return self._made[key, form]

    def _make(self, key: str, codes: np.ndarray, form: str) -> dict:
        assert self._codec is not None
        try:
            waveform = self._codec.decode(codes)
        except Exception as error:  # whatever a codec raises for these codes, the page shows the rest
            return {"key": key, "lack": f"the codec does not decode it: {error}"}
        return _clip(key, waveform, form)


def _clip(key: str, waveform: Waveform, form: str) -> dict:
    return {
        "key": key,
        "seconds": round(waveform.seconds, 2),
        "bars": waveform_bars(waveform.samples),
        "content": base64.b64encode(encode_audio(waveform, form)).decode("ascii"),
    }


def encode_audio(waveform: Waveform, form: str) -> bytes:
    """A file of this form in memory."""
    import soundfile

    file = io.BytesIO()
    kind = {"format": "FLAC", "subtype": "PCM_16"} if form == LOSSLESS else {"format": "MP3"}
    soundfile.write(file, np.clip(waveform.samples, -1.0, 1.0), waveform.rate, **kind)
    return file.getvalue()


def waveform_bars(samples: np.ndarray) -> list[int]:
    """Loudness along a sound, 0 to 99, relative to its own loudest place."""
    if not len(samples):
        return []
    parts = np.array_split(np.asarray(samples, dtype=np.float64), min(BARS, len(samples)))
    loud = np.array([np.sqrt(np.mean(part**2)) for part in parts])
    return [round(99 * value / (loud.max() or 1.0)) for value in loud.tolist()]
