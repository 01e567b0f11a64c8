"""Stand-ins for the packages of released codecs.

Their folders, modules, classes and calls are as their authors publish them (github.com/THUDM/GLM-4-Voice,
stepfun-ai/Step-Audio2, MoonshotAI/Kimi-Audio). In the place of the networks is a tone for each code, with noise that is
drawn as theirs is.

They refuse what the published code would refuse, so that the adapters are held to its interfaces; its weights are not
here.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from speech.audio import Waveform

FLOW = """
import torch


class MaskedDiffWithXvec(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.input_frame_rate = 12.5
        self.scale = torch.nn.Parameter(torch.zeros(1))
        self.dropout = torch.nn.Dropout(0.5)

    def inference(self, token, token_len, prompt_token, prompt_token_len, prompt_feat, prompt_feat_len, embedding):
        assert token.shape == (1, int(token_len)) and prompt_feat.shape == (1, 0, 80) and embedding.shape == (1, 192)
        frames = int(token.shape[1] / self.input_frame_rate * 22050 / 256)
        mel = torch.nn.functional.interpolate(token[None].float(), size=frames).expand(1, 80, frames)
        return self.dropout(mel) * self.scale + torch.randn(1, 80, frames)


class HiFTGenerator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def inference(self, mel, cache_source):
        tone = torch.sin(torch.arange(mel.shape[2] * 256) / 256 * (1 + mel.mean(1).repeat_interleave(256, 1) / 16384))
        return 0.1 * tone * self.scale, torch.zeros(1, 1, tone.shape[1])
"""
FLOW_INFERENCE = """
import importlib
import uuid

import torch
import yaml

import matcha.utils.audio


class AudioDecoder:
    def __init__(self, config_path, flow_ckpt_path, hift_ckpt_path, device="cuda"):
        self.device = device
        with open(config_path, "r") as f:
            named = yaml.safe_load(f)
        parts = [getattr(importlib.import_module(m), c) for m, c in (named["flow"], named["hift"])]
        self.flow, self.hift = (part() for part in parts)
        self.flow.load_state_dict(torch.load(flow_ckpt_path, map_location=self.device))
        self.hift.load_state_dict(torch.load(hift_ckpt_path, map_location=self.device))
        self.flow.to(self.device)
        self.hift.to(self.device)

    def token2wav(self, token, uuid, prompt_token=torch.zeros(1, 0, dtype=torch.int32),
                  prompt_feat=torch.zeros(1, 0, 80), embedding=torch.zeros(1, 192), finalize=False):
        length = torch.tensor([token.shape[1]], dtype=torch.int32)
        none = torch.tensor([0], dtype=torch.int32)
        mel = self.flow.inference(token=token, token_len=length, prompt_token=prompt_token, prompt_token_len=none,
                                  prompt_feat=prompt_feat, prompt_feat_len=none, embedding=embedding)
        speech, _ = self.hift.inference(mel=mel, cache_source=torch.zeros(1, 1, 0))
        return speech, mel

    def offline_inference(self, token):
        speech, _ = self.token2wav(token, uuid=str(uuid.uuid1()), finalize=True)
        return speech.cpu()
"""
WHISPER = """
import json

import torch


class WhisperVQEncoder(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @classmethod
    def from_pretrained(cls, path, *, use_safetensors=None, trust_remote_code=None):
        with open(f"{path}/config.json") as f:
            return cls(json.load(f))
"""
UTILS = """
from .modeling_whisper import WhisperVQEncoder


def extract_speech_token(model: WhisperVQEncoder, feature_extractor, utts):
    assert not model.training and feature_extractor.sampling_rate == 16000
    found = []
    for audio, sample_rate in utts:
        assert sample_rate == 16000 and audio.dim() == 2
        steps = audio[0, : audio.shape[1] // 1280 * 1280].reshape(-1, 1280)
        found.append([int(1e5 * x) % 16384 for x in steps.abs().mean(1)])
    return found
"""
TOKEN2WAV = """
import io

import soundfile
import s3tokenizer
import torch

from device_utils import get_device
from flashcosyvoice.modules.hifigan import tone


class Token2wav():
    rate = 24000

    def __init__(self, model_path, float16=False):
        self.audio_tokenizer = s3tokenizer.load_model(f"{model_path}/speech_tokenizer_v2_25hz.onnx").to(get_device())
        self.scale = torch.load(f"{model_path}/flow.pt", map_location="cpu", weights_only=True)["scale"]

    def __call__(self, generated_speech_tokens, prompt_wav):
        assert isinstance(generated_speech_tokens, list) and isinstance(prompt_wav, str)
        voice, _ = soundfile.read(prompt_wav)
        wav = tone(torch.tensor([generated_speech_tokens], device=get_device()), float(abs(voice).mean())) * self.scale
        output = io.BytesIO()
        soundfile.write(output, wav.cpu().numpy()[0], self.rate, format="wav", subtype="FLOAT")
        return output.getvalue()
"""
TONE = """
import torch


def tone(tokens, voice):
    turns = (1 + tokens.float() / 6561 + voice).repeat_interleave(960, 1)
    return 0.1 * torch.sin(turns.cumsum(1) / 20) + 0.01 * torch.randn(turns.shape)
"""
DEVICES = """
import torch


def get_device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""
S3 = """
import torch


class S3TokenizerV2(torch.nn.Module):
    def quantize(self, mel, mel_len):
        codes = mel[:, :1, ::4].abs()[:, 0].mul(1e5).long() % 6561
        return codes, torch.div(mel_len, 4, rounding_mode="floor")


def load_model(path):
    open(path).close()
    return S3TokenizerV2()


def log_mel_spectrogram(audio):
    assert audio.dim() == 1
    return audio[: len(audio) // 160 * 160].reshape(-1, 160).abs().mean(1).expand(128, -1)


def padding(data):
    return torch.stack(data), torch.tensor([mel.shape[1] for mel in data])
"""
DETOKENIZER = """
import torch


class PrefixStreamingFlowMatchingDetokenizer:
    def __init__(self, scale, look_ahead_tokens, device):
        self.scale, self.look_ahead_tokens, self.device = scale, look_ahead_tokens, device
        self.clear_states()

    @classmethod
    def from_pretrained(cls, vocoder_config, vocoder_ckpt, fm_config, fm_ckpt, device, look_ahead_tokens=0,
                        max_prompt_chunk=2, max_kv_cache_tokens=900, use_cfg=False):
        for path in (vocoder_config, vocoder_ckpt, fm_config):
            open(path).close()
        assert look_ahead_tokens == 12 and not use_cfg
        return cls(torch.load(fm_ckpt, weights_only=True)["scale"], look_ahead_tokens, device)

    def clear_states(self):
        self.left = None

    @torch.inference_mode()
    def detokenize_streaming(self, semantic_token, ode_step=30, verbose=False, ode_solver="neural_ode_euler",
                             is_final=False, upsample_factor=1):
        assert semantic_token.shape[0] == 1 and semantic_token.shape[1] <= 30 and upsample_factor == 4
        wav = (semantic_token / 16384).repeat_interleave(upsample_factor * 480, dim=1)
        wav = 0.1 * self.scale * torch.sin(wav.cumsum(1)) + 0.01 * torch.randn(wav.shape)
        if self.left is not None:
            wav = torch.cat([self.left, wav], dim=1)
        half = 0 if is_final else self.look_ahead_tokens * upsample_factor * 480
        self.left = None if is_final else wav[:, -half:]
        return wav[:, : wav.shape[1] - half].to(torch.bfloat16).float()
"""
GLM4_TOKENIZER = """
import torch
from torch import nn

from transformers import WhisperFeatureExtractor


class Glm4Tokenizer(nn.Module):
    def __init__(self, tokenizer_path):
        super().__init__()
        self.feature_extractor = WhisperFeatureExtractor.from_pretrained(tokenizer_path)

    def tokenize(self, speech=None, audio_path=None, sr=16000):
        assert sr == 16000 and speech.dim() == 2
        steps = speech[0, : speech.shape[1] // 1280 * 1280].reshape(-1, 1280)
        return (1e5 * steps.abs().mean(1)).long().remainder(16384).unsqueeze(0)
"""
LISTENING = json.dumps({"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128})


def glm4_voice(root: Path) -> Path:
    _write(
        root,
        {
            "flow_inference.py": FLOW_INFERENCE,
            "cosyvoice/__init__.py": "",
            "cosyvoice/flow/flow.py": FLOW,
            "third_party/Matcha-TTS/matcha/utils/audio.py": "",
            "speech_tokenizer/__init__.py": "",
            "speech_tokenizer/modeling_whisper.py": WHISPER,
            "speech_tokenizer/utils.py": UTILS,
            "glm-4-voice-decoder/config.yaml": "flow: [cosyvoice.flow.flow, MaskedDiffWithXvec]\n"
            "hift: [cosyvoice.flow.flow, HiFTGenerator]\n",
            "glm-4-voice-tokenizer/config.json": "{}",
            "glm-4-voice-tokenizer/preprocessor_config.json": LISTENING,
        },
    )
    for name in ("flow", "hift"):
        torch.save({"scale": torch.ones(1)}, root / f"glm-4-voice-decoder/{name}.pt")
    return root


def cosyvoice2(root: Path) -> Path:
    weights = "Step-Audio-2-mini/token2wav"
    _write(
        root,
        {
            "token2wav.py": TOKEN2WAV,
            "device_utils.py": DEVICES,
            "flashcosyvoice/modules/hifigan.py": TONE,
            "s3tokenizer.py": S3,  # to be installed, and found on the path like the rest
            **{f"{weights}/{name}": "" for name in ("flow.yaml", "hift.pt", "campplus.onnx")},
            f"{weights}/speech_tokenizer_v2_25hz.onnx": "",
        },
    )
    torch.save({"scale": torch.ones(1)}, root / weights / "flow.pt")
    Waveform(np.sin(np.arange(16000) / 20).astype(np.float32), 16000).write(root / "assets/default_male.wav")
    return root


def kimi_audio(root: Path) -> Path:
    weights = "Kimi-Audio-7B-Instruct"
    _write(
        root,
        {
            "kimia_infer/models/detokenizer/__init__.py": DETOKENIZER,
            "kimia_infer/models/tokenizer/glm4_tokenizer.py": GLM4_TOKENIZER,
            f"{weights}/audio_detokenizer/config.yaml": "{}",
            f"{weights}/vocoder/config.json": "{}",
            f"{weights}/vocoder/model.pt": "",
            "glm-4-voice-tokenizer/config.json": "{}",
            "glm-4-voice-tokenizer/preprocessor_config.json": LISTENING,
        },
    )
    torch.save({"scale": torch.ones(1)}, root / weights / "audio_detokenizer/model.pt")
    return root


MADE: dict[str, Callable[[Path], Path]] = {
    "glm4_voice": glm4_voice,
    "cosyvoice2": cosyvoice2,
    "kimi_audio": kimi_audio,
}


def _write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
