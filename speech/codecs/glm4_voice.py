"""The codec of GLM-4-Voice, which VITA-Audio shares: 12.5 tokens/s of 16,384 codes, sound at 22,050 Hz.

    waveform ─▶ 16 kHz ─▶ Whisper encoder with a quantiser ─▶ codes ─▶ flow matching to mel ─▶ HiFT ─▶ 22,050 Hz

The folder is the authors' repository (github.com/THUDM/GLM-4-Voice, with its submodule third_party/Matcha-TTS), with
the decoder's and the tokenizer's weights (THUDM/glm-4-voice-decoder, THUDM/glm-4-voice-tokenizer) in it. What is called
there: `flow_inference.AudioDecoder` as its web_demo.py builds it, and `speech_tokenizer`. The decoder has one voice of
its own and takes no prompt.
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

TITLE = "GLM-4-Voice's codec"
MODULES = ("flow_inference", "speech_tokenizer", "cosyvoice", "matcha")
CODE = ("flow_inference.py", "speech_tokenizer/modeling_whisper.py", "speech_tokenizer/utils.py")
FOLDERS = (".", "cosyvoice", "third_party/Matcha-TTS")
"""Where web_demo.py has modules looked for."""
DECODER, TOKENIZER = "glm-4-voice-decoder", "glm-4-voice-tokenizer"
WEIGHTS = tuple(f"{DECODER}/{name}" for name in ("config.yaml", "flow.pt", "hift.pt"))
TOKENIZER_FILES = tuple(f"{TOKENIZER}/{name}" for name in ("config.json", "preprocessor_config.json"))
LISTENS_AT = 16_000
"""Hz, of the tokenizer."""


class Glm4VoiceCodec:
    """Decodes a reply as a whole. The tokenizer is loaded when something is encoded for the first time."""

    rate = 22_050
    codebook = 16_384
    tokens_per_second = 12.5

    def __init__(self, package: ExternalPackage, version: str, device: Any) -> None:
        self.version = version
        self._package, self._device = package, device
        decoder = package.root / DECODER
        with error_text(TITLE, "loading the decoder"), package.importing(*FOLDERS):
            self._decoder = package.module("flow_inference").AudioDecoder(
                config_path=str(decoder / "config.yaml"),
                flow_ckpt_path=str(decoder / "flow.pt"),
                hift_ckpt_path=str(decoder / "hift.pt"),
                device=str(device),
            )
        # flow_inference.py leaves its networks as they are built, in training mode, where dropout would draw.
        self._decoder.flow.eval()
        self._decoder.hift.eval()
        self._tokenizer: tuple[Any, Any, Any] | None = None

    @classmethod
    def check(cls, path: Path, device: str = "auto") -> str:
        """The version, of files that are all there. Imports and loads nothing. Raises InputError."""
        package = ExternalPackage(path, TITLE, MODULES)
        check_device(device)
        code, weights = package.need(CODE), package.need(WEIGHTS)
        package.need(TOKENIZER_FILES)
        return version_of("glm4-voice", [code[0], *weights], path)

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> Self:
        """path: the folder. device: auto, cpu, cuda or cuda:NUMBER."""
        version = cls.check(path, device)
        return cls(ExternalPackage(path, TITLE, MODULES), version, device_of(device))

    def encode(self, waveform: Waveform) -> np.ndarray:
        import torch

        samples = torch.from_numpy(waveform.at_rate(LISTENS_AT).samples.astype(np.float32))[None]
        with error_text(TITLE, f"encoding {waveform.seconds:.1f} s of sound"):
            model, features, extract = self._tokenizer = self._tokenizer or self._load_tokenizer()
            [codes] = extract(model, features, [(samples, LISTENS_AT)])
        return checked_codes(codes, self.codebook, TITLE)

    def decode(self, codes: np.ndarray) -> Waveform:
        import torch

        codes = checked_codes(codes, self.codebook, TITLE)
        with sampled_codes(codes, self._device), error_text(TITLE, f"decoding {len(codes)} codes"):
            sound = self._decoder.offline_inference(torch.from_numpy(codes)[None].to(self._device))
        return Waveform(samples_of(sound, TITLE), self.rate)

    def _load_tokenizer(self) -> tuple[Any, Any, Any]:
        """Encoder, feature extractor, and the function that puts them to work."""
        from transformers import WhisperFeatureExtractor

        folder = str(self._package.root / TOKENIZER)
        with self._package.importing(*FOLDERS):
            encoder = self._package.module("speech_tokenizer.modeling_whisper").WhisperVQEncoder
            extract = self._package.module("speech_tokenizer.utils").extract_speech_token
            model = encoder.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        features = WhisperFeatureExtractor.from_json_file(f"{folder}/preprocessor_config.json")
        return model.eval().to(self._device), features, extract
