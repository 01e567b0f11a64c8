"""Dialogues for a family that hears features: a slot for every frame, and the frames in a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from data.open_dataset import open_demonstrations, open_prompts
from data.prepare.encode import Encoder, encode
from data.slices import file_slices
from speech.audio import Waveform, read_features
from speech.checkpoint_conversion import import_checkpoint
from speech.families import family
from speech.grammar import token_kinds
from speech.vocabulary import Vocabulary
from tests.families.codec import Tones
from tests.families.tiny import vita

pytestmark = pytest.mark.xdist_group("hearing")

WIDTH = 8


class Loudness:
    """A frame for every tenth of a second, all its values the loudness."""

    version = "loudness-1"

    @classmethod
    def load(cls, path: Path) -> "Loudness":
        return cls()

    def encode(self, waveform: Waveform) -> np.ndarray:
        step = waveform.rate // 10
        frames = waveform.samples[: len(waveform.samples) // step * step].reshape(-1, step)
        return np.repeat(np.sqrt(np.square(frames).mean(axis=1, keepdims=True)), WIDTH, axis=1)


class Deaf(Loudness):
    def encode(self, waveform: Waveform) -> np.ndarray:
        return np.zeros((0, WIDTH), np.float32)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Path:
    released = vita(tmp_path_factory.mktemp("released"), features=True)
    chosen = family("vita-audio-plus")
    import_checkpoint(released, chosen.original, chosen.name, tmp_path_factory.mktemp("made") / "trunk")
    return tmp_path_factory.getbasetemp() / "made0/trunk"


def _encoder(trunk: Path, folder: Path, hearing: Loudness) -> Encoder:
    chosen = family("vita-audio-plus")
    vocabulary = Vocabulary.from_checkpoint(trunk, chosen.tokens)
    return Encoder(
        family=chosen, vocabulary=vocabulary, codec=Tones(22050, 16384, 12.5), hearing=hearing,
        features=folder / "features", structure=(chosen.interleave, token_kinds(vocabulary)), longest_prompt=400,
        longest=800,
    )  # fmt: skip


def _dialogue(folder: Path) -> Path:
    """Two questions, of 0.5 and 0.3 s, with an answer between them and one to imitate."""
    for name, seconds in (("first", 0.5), ("second", 0.3), ("answer", 4.0), ("target", 4.0)):
        tone = 0.1 * np.sin(np.arange(int(16000 * seconds)) * 0.3)
        Waveform(tone.astype(np.float32), 16000).write(folder / f"{name}.wav")
    turns = [("user", "<|audio|>"), ("assistant", "well <|audio|>"), ("user", "<|audio|>")]
    row = {
        "id": "talk/1", "messages": [{"role": role, "content": content} for role, content in turns],
        "audios": ["first.wav", "answer.wav", "second.wav"], "sft_target_text": "yes", "sft_target_audio": "target.wav",
        "question_text": "and now",
    }  # fmt: skip
    path = folder / "talks.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return path


def test_frames_of_all_questions_have_their_slots(trunk, tmp_path):
    source = _dialogue(tmp_path)
    encoder = _encoder(trunk, tmp_path / "to", Loudness())
    outcome = encode(encoder, file_slices(source)[0], None, tmp_path / "to", 0)
    assert outcome.written == {"prompts": 1, "demonstrations": 1}, outcome.refused
    [prompt] = open_prompts([tmp_path / "to/prompts"], encoder.vocabulary)
    [shown] = open_demonstrations([tmp_path / "to/demonstrations"], encoder.vocabulary)
    assert prompt.features == shown.features
    assert int((prompt.token_ids == encoder.vocabulary.slot).sum()) == 5 + 3
    frames = read_features(prompt.features, 8)
    expected = [Loudness().encode(Waveform.read(tmp_path / f"{name}.wav")) for name in ("first", "second")]
    assert np.allclose(frames, np.concatenate(expected))
    # The model's own turn is spelt as it replied, in codes.
    assert (prompt.token_ids == encoder.vocabulary.begin_speech).sum() > 2


def test_a_recording_that_is_not_heard_is_refused(trunk, tmp_path):
    encoder = _encoder(trunk, tmp_path / "to", Deaf())
    outcome = encode(encoder, file_slices(_dialogue(tmp_path))[0], None, tmp_path / "to", 0)
    assert outcome.refused == {"recording not heard": 1}


def test_the_configuration_names_an_encoder_where_one_is_needed(root):
    from common.errors import InputError
    from duet.prepare import _encoder_version

    config = load_config(root / "configs/playground.yaml", [])
    assert _encoder_version(config, family("playground")) == ""
    with pytest.raises(InputError, match=r"data\.encoder: family vita-audio-plus hears features"):
        _encoder_version(config, family("vita-audio-plus"))
    config.data.encoder = "tests.data.prepare.test_hearing:Loudness"
    assert _encoder_version(config, family("vita-audio-plus")) == "loudness-1"
    with pytest.raises(InputError, match="family playground hears codes"):
        _encoder_version(config, family("playground"))


@pytest.mark.parametrize(
    "name", ["Loudness", "nowhere:Loudness", "tests.data.prepare.test_hearing:Quiet", "json:dumps"]
)
def test_what_is_no_encoder_is_refused_by_its_key(root, name):
    from common.errors import InputError
    from duet.prepare import _encoder_version

    config = load_config(root / "configs/playground.yaml", [])
    config.data.encoder = name
    with pytest.raises(InputError, match=rf"^data\.encoder: {name}.* cannot load an encoder"):
        _encoder_version(config, family("vita-audio-plus"))
