"""The decoder of CosyVoice2 as Step-Audio-2 publishes it: 25 tokens/s of 6,561 codes, sound at 24,000 Hz.

    waveform ─▶ 16 kHz ─▶ S3 tokenizer v2 ─▶ codes, and the voice of a prompt ─▶ flow matching ─▶ HiFT ─▶ 24,000 Hz

The folder is the authors' repository (github.com/stepfun-ai/Step-Audio2) with the model's
(stepfun-ai/Step-Audio-2-mini) in it, as its README says; the weights lie in that one's token2wav/. What is called
there: `token2wav.Token2wav`, which gives a whole WAV file, and its S3 tokenizer. The voice is that of a recording, of
the repository or one's own.
"""

import io
from pathlib import Path
from typing import Any, Self

import numpy as np

from common.errors import InputError
from common.files import check_exists
from speech.audio import Waveform
from speech.codecs.external_package import (
    CodecFailed,
    ExternalPackage,
    check_device,
    checked_codes,
    device_of,
    error_text,
    sampled_codes,
    samples_of,
    version_of,
)

TITLE = "CosyVoice2's codec"
MODULES = ("token2wav", "device_utils", "flashcosyvoice", "cosyvoice2")
CODE = ("token2wav.py",)
WEIGHTS = "Step-Audio-2-mini/token2wav"
FILES = ("flow.yaml", "flow.pt", "hift.pt", "campplus.onnx", "speech_tokenizer_v2_25hz.onnx")
LISTENS_AT = 16_000
"""Hz, of the tokenizer."""


class CosyVoice2Codec:
    """Decodes a reply as a whole, in the voice of one recording."""

    rate = 24_000
    codebook = 6_561
    tokens_per_second = 25.0

    def __init__(self, package: ExternalPackage, weights: str, prompt: Path, version: str, device: Any) -> None:
        self.version = version
        self._prompt, self._device = prompt, device
        with error_text(TITLE, "loading the decoder"), package.importing("."):
            module = package.module("token2wav")
            if hasattr(module, "get_device"):
                module.get_device = lambda: device  # it asks for the best there is, at every call
            elif device.type != "cuda":
                raise InputError(
                    f"reward.codec.kwargs.device: {device}, but the token2wav.py of {package.root} runs on a GPU "
                    "only; newer ones of its authors ask which device there is"
                )
            self._token2wav = module.Token2wav(str(package.root / weights))
            self._s3 = module.s3tokenizer

    @classmethod
    def check(cls, path: Path, prompt: str = "", weights: str = WEIGHTS, device: str = "auto") -> str:
        """The version, of files that are all there: the voice is part of it. Imports and loads nothing. Raises
        InputError."""
        package = ExternalPackage(path, TITLE, MODULES)
        check_device(device)
        files = package.need([*CODE, *(f"{weights}/{name}" for name in FILES)])
        return version_of("cosyvoice2", [*files, _voice(path, prompt)], path)

    @classmethod
    def load(cls, path: Path, prompt: str = "", weights: str = WEIGHTS, device: str = "auto") -> Self:
        """path: the folder. prompt: a recording of the voice, relative to it or absolute. weights: folder of the
        decoder's weights, relative to it. device: auto, cpu, cuda or cuda:NUMBER."""
        version = cls.check(path, prompt, weights, device)
        return cls(ExternalPackage(path, TITLE, MODULES), weights, _voice(path, prompt), version, device_of(device))

    def encode(self, waveform: Waveform) -> np.ndarray:
        import torch

        samples = torch.from_numpy(waveform.at_rate(LISTENS_AT).samples.astype(np.float32))
        with error_text(TITLE, f"encoding {waveform.seconds:.1f} s of sound"), torch.no_grad():
            mels, lengths = self._s3.padding([self._s3.log_mel_spectrogram(samples)])
            tokenizer = self._token2wav.audio_tokenizer
            codes, counts = tokenizer.quantize(mels.to(self._device), lengths.to(self._device))
            found = codes[0, : int(counts[0])].cpu().numpy()
        return checked_codes(found, self.codebook, TITLE)

    def decode(self, codes: np.ndarray) -> Waveform:
        import soundfile

        codes = checked_codes(codes, self.codebook, TITLE)
        with sampled_codes(codes, self._device), error_text(TITLE, f"decoding {len(codes)} codes"):
            written = self._token2wav(codes.tolist(), str(self._prompt))
            samples, rate = soundfile.read(io.BytesIO(written), dtype="float32")
        if rate != self.rate:
            raise CodecFailed(f"{TITLE}: it wrote {rate} Hz, and its sound has {self.rate} Hz")
        return Waveform(samples_of(samples, TITLE), rate)


def _voice(path: Path, prompt: object) -> Path:
    """The recording. Raises InputError when there is none."""
    if not isinstance(prompt, str) or not prompt:
        raise InputError(
            f"reward.codec.kwargs.prompt: {prompt!r} names no recording; {TITLE} speaks in the voice of a WAV file, "
            "such as assets/default_male.wav of its authors"
        )
    if not check_exists(path / prompt):
        raise InputError(f"reward.codec.kwargs.prompt: {path / prompt} is not there; a WAV file of the voice")
    return path / prompt
