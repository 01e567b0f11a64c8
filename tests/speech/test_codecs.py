"""Codecs of released models, against stand-ins with the interfaces of their authors' code (`released.py`)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import InputError
from configs.load import load_config
from controller.checkpoint_checks import inspect_codec, load_codec
from speech.audio import Waveform
from speech.codecs.base import Codec
from speech.codecs.cosyvoice2 import CosyVoice2Codec
from speech.codecs.external_package import CodecFailed
from speech.codecs.glm4_voice import Glm4VoiceCodec
from speech.codecs.kimi_audio import KimiAudioCodec
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.speech.released import MADE

CODECS: dict[str, type] = {
    "glm4_voice": Glm4VoiceCodec,
    "cosyvoice2": CosyVoice2Codec,
    "kimi_audio": KimiAudioCodec,
}
FACTS = {
    "glm4_voice": (22_050, 16_384, 12.5),
    "cosyvoice2": (24_000, 6_561, 25.0),
    "kimi_audio": (24_000, 16_384, 12.5),
}
"""Rate, codes, tokens a second."""
FURTHER = {"cosyvoice2": {"prompt": "assets/default_male.wav"}}
WEIGHTS = {
    "glm4_voice": "glm-4-voice-decoder/flow.pt",
    "cosyvoice2": "Step-Audio-2-mini/token2wav/flow.pt",
    "kimi_audio": "Kimi-Audio-7B-Instruct/audio_detokenizer/model.pt",
}
MODULES = ("flow_inference", "speech_tokenizer", "cosyvoice", "token2wav", "kimia_infer")
CODES = np.random.default_rng(0).integers(0, 6561, 100)


@pytest.fixture(params=list(CODECS))
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(name, tmp_path) -> Path:
    return MADE[name](tmp_path / "released")


def loaded(name: str, folder: Path, **more):
    return CODECS[name].load(folder, **FURTHER.get(name, {}) | {"device": "cpu"} | more)


def checked(name: str, folder: Path, **more) -> str:
    return CODECS[name].check(folder, **FURTHER.get(name, {}) | more)


def test_sound_has_the_rate_and_the_length_that_the_codec_says(name, folder):
    codec = loaded(name, folder)
    assert isinstance(codec, Codec)
    assert (codec.rate, codec.codebook, codec.tokens_per_second) == FACTS[name]
    for count in (1, 29, 30, 31, 100):
        sound = codec.decode(CODES[:count])
        assert sound.rate == codec.rate
        assert sound.seconds == pytest.approx(count / codec.tokens_per_second, abs=1 / codec.tokens_per_second)
        assert sound.samples.dtype == np.float32
        assert np.isfinite(sound.samples).all()


def test_the_same_codes_sound_the_same_whoever_decodes_them_and_after_whatever(name, folder):
    """The decoders draw noise."""
    codec = loaded(name, folder)
    first = codec.decode(CODES).samples
    other = codec.decode(CODES[::-1]).samples
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert np.array_equal(codec.decode(CODES).samples, first)
    assert torch.equal(torch.get_rng_state(), before), "what somebody else draws is changed"
    assert not np.array_equal(other, first)
    assert np.array_equal(loaded(name, folder).decode(CODES).samples, first)


def test_sound_of_any_rate_becomes_codes_of_the_codebook(name, folder):
    codec = loaded(name, folder)
    noise = np.random.default_rng(1).normal(0, 0.1, 2 * 22050).astype(np.float32)
    codes = codec.encode(Waveform(noise, 22050))
    assert codes.dtype == np.int64
    assert len(codes) == 2 * codec.tokens_per_second
    assert 0 <= codes.min() < codes.max() < codec.codebook
    assert codec.decode(codes).rate == codec.rate


def test_codes_of_no_codebook_are_refused(name, folder):
    codec = loaded(name, folder)
    for codes in ([codec.codebook], [-1], [0.5], []):
        with pytest.raises(CodecFailed, match=r"no codes|codes are whole numbers in \[0, "):
            codec.decode(np.array(codes))


def refused(name: str, folder: Path) -> str | None:
    """What is said of a folder that will not do."""
    try:
        checked(name, folder)
    except InputError as error:
        return str(error)
    return None


def test_every_file_that_is_not_there_is_named(name, folder):
    """Before anything is imported. Modules that the adapters do not call themselves are left to those that they do."""
    missed = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        complaint = refused(name, folder)
        path.write_bytes(content)
        if complaint is not None:
            missed.append(path.suffix)
            assert path.name in complaint
            assert "reward.codec.kwargs." in complaint
    assert {".py", ".pt"} < set(missed)
    assert len(missed) >= 7
    with pytest.raises(InputError, match=r"docs/own-model\.md says what must lie there"):
        CODECS[name].load(folder.parent, **FURTHER.get(name, {}))


def test_a_version_is_of_the_weights_wherever_they_lie(name, folder, tmp_path):
    version = checked(name, folder)
    assert loaded(name, folder).version == version
    assert version.startswith(name.replace("_", "-"))
    assert checked(name, MADE[name](tmp_path / "elsewhere")) == version
    (folder / "README.md").write_text("more")
    assert checked(name, folder) == version
    weights = folder / WEIGHTS[name]
    size = weights.stat().st_size
    torch.save({"scale": torch.full((1,), 0.5)}, weights)
    assert weights.stat().st_size == size
    assert checked(name, folder) != version
    assert loaded(name, folder).version == checked(name, folder)


def test_checking_imports_nothing(name, folder):
    for module in [known for known in sys.modules if known.partition(".")[0] in MODULES]:
        del sys.modules[module]
    path = list(sys.path)
    checked(name, folder)
    assert not {known.partition(".")[0] for known in sys.modules} & set(MODULES)
    loaded(name, folder)
    assert {known.partition(".")[0] for known in sys.modules} & set(MODULES)
    assert sys.path == path


def test_each_folder_has_its_own_code(name, folder, tmp_path):
    """Two of the same names in one process: the one that is loaded is the one that was asked for."""
    other = MADE[name](tmp_path / "elsewhere")
    for path in other.rglob("*.py"):
        path.write_text(path.read_text().replace("0.1 *", "0.05 *"))
    loud, quiet = loaded(name, folder).decode(CODES), loaded(name, other).decode(CODES)
    assert abs(quiet.samples).max() < 0.8 * abs(loud.samples).max()


def test_a_module_that_is_not_installed_is_named(name, folder):
    for path in folder.rglob("*.py"):
        path.write_text("import torchaudio_of_nobody\n" + path.read_text())
    with pytest.raises(InputError, match="needs the module 'torchaudio_of_nobody', which is not there"):
        loaded(name, folder)


def test_what_the_code_raises_is_said_with_its_name(name, folder):
    for path in folder.rglob("*.py"):
        path.write_text(path.read_text().replace("torch.sin(", "no_such_function("))
    with pytest.raises(CodecFailed, match=r"codec failed while decoding 100 codes: NameError: .*no_such_function"):
        loaded(name, folder).decode(CODES)


def test_weights_that_do_not_load_are_said_with_its_name(name, folder):
    (folder / WEIGHTS[name]).write_bytes(b"no weights")
    with pytest.raises(CodecFailed, match="codec failed while loading the decoder"):
        loaded(name, folder)


def test_samples_that_are_no_numbers_are_refused(name, folder):
    for path in folder.rglob("*.py"):
        path.write_text(path.read_text().replace("0.1 *", "float('nan') *"))
    with pytest.raises(CodecFailed, match="not finite"):
        loaded(name, folder).decode(CODES)


def test_devices(name, folder, monkeypatch):
    for device in ("gpu", "cuda:x", 0, ""):
        with pytest.raises(InputError, match=r"device: .* is not possible; allowed: auto"):
            checked(name, folder, device=device)
    assert checked(name, folder, device="cuda:1")  # of a machine elsewhere
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="cuda:1, but this process has 1 GPUs"):
        loaded(name, folder, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loaded(name, folder, device="auto").decode(CODES).rate == FACTS[name][0]


def test_dropout_is_off(tmp_path):
    """flow_inference.py leaves its networks in training mode."""
    folder, without = (MADE["glm4_voice"](tmp_path / name) for name in ("released", "without"))
    code = without / "cosyvoice/flow/flow.py"
    code.write_text(code.read_text().replace("Dropout(0.5)", "Dropout(0.0)"))
    sounds = [loaded("glm4_voice", each).decode(CODES).samples for each in (folder, without)]
    assert np.array_equal(*sounds)


def test_the_voice_is_that_of_the_prompt(tmp_path):
    folder = MADE["cosyvoice2"](tmp_path / "released")
    own = tmp_path / "own.wav"
    Waveform(np.full(8000, 0.5, dtype=np.float32), 8000).write(own)
    shipped, mine = loaded("cosyvoice2", folder), loaded("cosyvoice2", folder, prompt=str(own))
    assert shipped.version != mine.version
    assert not np.array_equal(shipped.decode(CODES).samples, mine.decode(CODES).samples)
    for prompt, complaint in (("", "names no recording"), (5, "5 names no recording"), ("none.wav", "none.wav is not")):
        with pytest.raises(InputError, match=f"kwargs.prompt: .*{complaint}"):
            CosyVoice2Codec.check(folder, prompt=prompt)


def test_a_wav_file_at_another_rate_is_no_sound_of_this_codec(tmp_path):
    folder = MADE["cosyvoice2"](tmp_path / "released")
    code = folder / "token2wav.py"
    code.write_text(code.read_text().replace("rate = 24000", "rate = 22050"))
    with pytest.raises(CodecFailed, match="it wrote 22050 Hz, and its sound has 24000 Hz"):
        loaded("cosyvoice2", folder).decode(CODES)


def test_a_token2wav_that_asks_for_no_device_needs_a_gpu(tmp_path):
    """As the first ones of its authors, which call .cuda()."""
    folder = MADE["cosyvoice2"](tmp_path / "released")
    code = folder / "token2wav.py"
    without = code.read_text().replace("from device_utils import get_device\n", "")
    code.write_text(without.replace("get_device()", '"cuda"'))
    with pytest.raises(InputError, match=r"device: cpu, but the token2wav\.py of .* runs on a GPU only"):
        loaded("cosyvoice2", folder)


def configured(root, world, folder: Path, **more):
    arguments = {"path": str(folder), **more}
    said = ", ".join(f"{key}: '{value}'" for key, value in arguments.items())
    return load_config(
        root / "configs/playground.yaml",
        [
            f"model.path={world / 'base'}",
            "reward.codec.target=speech.codecs.cosyvoice2:CosyVoice2Codec",
            f"reward.codec.kwargs={{{said}}}",
        ],
    )


def test_a_configuration_is_checked_by_the_files_alone(root, world, tmp_path, monkeypatch):
    folder = MADE["cosyvoice2"](tmp_path / "released")
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    config = configured(root, world, folder, **FURTHER["cosyvoice2"], device="cuda")
    with pytest.raises(InputError, match=r"the codec has 6561 codes, the tokenizer of .* has 512 speech tokens"):
        inspect_codec(config, vocabulary)
    monkeypatch.setattr(CosyVoice2Codec, "codebook", vocabulary.codebook)
    (folder / "token2wav.py").write_text("raise SystemExit('it was run')\n")
    assert inspect_codec(config, vocabulary).rate == 24_000
    with pytest.raises(InputError, match="unknown argument 'rate'; allowed: path, prompt, weights, device"):
        inspect_codec(configured(root, world, folder, rate=5), vocabulary)
    with pytest.raises(InputError, match="prompt: '' names no recording"):
        load_codec(configured(root, world, folder), vocabulary)


def test_the_adapters_are_imported_without_torch(root):
    modules = ", ".join(f"speech.codecs.{name}" for name in CODECS)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0
