"""The codec of Kimi-Audio: 12.5 tokens/s of 16,384 codes, the tokenizer of GLM-4-Voice, sound at 24,000 Hz.

    waveform ─▶ 16 kHz ─▶ Whisper encoder with a quantiser ─▶ codes ─▶ flow matching, 50 mel frames/s ─▶ BigVGAN

The folder is the authors' repository (github.com/MoonshotAI/Kimi-Audio, with its submodule of the tokenizer), with the
model's weights (moonshotai/Kimi-Audio-7B-Instruct; the parts audio_detokenizer/ and vocoder/ are enough) and the
tokenizer's (THUDM/glm-4-voice-tokenizer) in it. What is called there: `kimia_infer.models.detokenizer` as `KimiAudio`
of kimia_infer/api/kimia.py calls it, in chunks and without a reference voice, and `Glm4Tokenizer`.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np

from speech.audio import Waveform
from speech.codecs.external_package import (
    ExternalPackage,
    check_device,
    checked_codes,
    device_of,
    error_text,
    sampled_codes,
    samples_of,
    version_of,
)

TITLE = "Kimi-Audio's codec"
MODULES = ("kimia_infer",)
CODE = ("kimia_infer/models/detokenizer/__init__.py", "kimia_infer/models/tokenizer/glm4_tokenizer.py")
WEIGHTS, TOKENIZER = "Kimi-Audio-7B-Instruct", "glm-4-voice-tokenizer"
FILES = ("audio_detokenizer/config.yaml", "audio_detokenizer/model.pt", "vocoder/config.json", "vocoder/model.pt")
TOKENIZER_FILES = tuple(f"{TOKENIZER}/{name}" for name in ("config.json", "preprocessor_config.json"))
CHUNK = 30
"""Codes that the detokenizer takes at once."""
FRAMES = 4
"""Mel frames of a code."""
LOOK_AHEAD, PROMPT_CHUNKS = 12, 10
"""As in `get_audio_detokenizer`, which takes no device."""
LISTENS_AT = 16_000
"""Hz, of the tokenizer."""


class KimiAudioCodec:
    """Decodes a reply chunk by chunk, as a stream would. The tokenizer is loaded when something is encoded for the
    first time."""

    rate = 24_000
    codebook = 16_384
    tokens_per_second = 12.5

    def __init__(self, package: ExternalPackage, weights: str, version: str, device: Any) -> None:
        self.version = version
        self._package, self._device = package, device
        folder = package.root / weights
        with error_text(TITLE, "loading the decoder"), package.importing("."):
            module = package.module("kimia_infer.models.detokenizer")
            self._detokenizer = module.PrefixStreamingFlowMatchingDetokenizer.from_pretrained(  # its own, not a model's
                vocoder_config=str(folder / "vocoder/config.json"),
                vocoder_ckpt=str(folder / "vocoder/model.pt"),
                fm_config=str(folder / "audio_detokenizer/config.yaml"),
                fm_ckpt=str(folder / "audio_detokenizer/model.pt"),
                device=device,
                max_prompt_chunk=PROMPT_CHUNKS,
                look_ahead_tokens=LOOK_AHEAD,
                use_cfg=False,
            )
        self._tokenizer: Any = None

    @classmethod
    def check(cls, path: Path, weights: str = WEIGHTS, device: str = "auto") -> str:
        """The version, of files that are all there. Imports and loads nothing. Raises InputError."""
        package = ExternalPackage(path, TITLE, MODULES)
        check_device(device)
        code, files = package.need(CODE), package.need(f"{weights}/{name}" for name in FILES)
        package.need(TOKENIZER_FILES)
        return version_of("kimi-audio", [code[0], *files], path)

    @classmethod
    def load(cls, path: Path, weights: str = WEIGHTS, device: str = "auto") -> Self:
        """path: the folder. weights: folder of the model's, relative to it. device: auto, cpu, cuda or cuda:NUMBER."""
        version = cls.check(path, weights, device)
        return cls(ExternalPackage(path, TITLE, MODULES), weights, version, device_of(device))

    def encode(self, waveform: Waveform) -> np.ndarray:
        import torch

        samples = torch.from_numpy(waveform.at_rate(LISTENS_AT).samples.astype(np.float32))[None]
        with error_text(TITLE, f"encoding {waveform.seconds:.1f} s of sound"):
            self._tokenizer = self._tokenizer or self._load_tokenizer()
            codes = self._tokenizer.tokenize(speech=samples, sr=LISTENS_AT).cpu().numpy()
        return checked_codes(codes, self.codebook, TITLE)

    def decode(self, codes: np.ndarray) -> Waveform:
        import torch

        codes = checked_codes(codes, self.codebook, TITLE)
        with sampled_codes(codes, self._device), error_text(TITLE, f"decoding {len(codes)} codes"):
            self._detokenizer.clear_states()  # of a reply that failed half-way
            tokens = torch.from_numpy(codes)[None].to(self._device)
            parts = [
                self._detokenizer.detokenize_streaming(
                    tokens[:, start : start + CHUNK],
                    is_final=start + CHUNK >= len(codes),
                    upsample_factor=FRAMES,
                )
                for start in range(0, len(codes), CHUNK)
            ]
            sound = torch.cat(parts, dim=-1)
        return Waveform(samples_of(sound, TITLE), self.rate)

    def _load_tokenizer(self) -> Any:
        with self._package.importing("."):
            module = self._package.module("kimia_infer.models.tokenizer.glm4_tokenizer")
            return module.Glm4Tokenizer(str(self._package.root / TOKENIZER)).to(self._device)
