"""Pitch, tempo, silence and words misheard, against sounds whose numbers are known and against Praat."""

import numpy as np
import pytest

from data.records import read_demonstrations
from playground import recogniser
from playground.codec import PlaygroundCodec
from speech.acoustics import measures, pitch_semitones, word_changes
from speech.audio import Waveform
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary


def voice(hertz: float, seconds: float = 1.0, rate: int = 16000, partials: int = 6) -> np.ndarray:
    """float32 [T]: a fundamental with weaker overtones."""
    time = np.arange(int(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, partials)]
    return (0.2 * np.sum(waves, axis=0)).astype(np.float32)


@pytest.mark.parametrize("hertz", [80.0, 100.0, 155.0, 220.0, 310.0, 450.0])
@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
def test_a_tone_has_its_own_pitch(hertz, rate):
    found = pitch_semitones(Waveform(voice(hertz, rate=rate), rate))
    assert found == pytest.approx(12 * np.log2(hertz / 100.0), abs=0.1)


def test_voices_of_the_playground_have_the_pitch_that_praat_finds(world):
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    codec = PlaygroundCodec.load(world / "codec")
    shown = read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:32]
    sounds = [codec.decode(vocabulary.codes(d.reply_ids)) for d in shown]
    differences = [pitch_semitones(s) - recogniser.pitch(s) for s in sounds]
    assert np.abs(differences).max() < 1.0
    assert abs(np.mean(differences)) < 0.15


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(0).normal(scale=0.1, size=16000).astype(np.float32)
    for samples in (noise, np.zeros(16000, np.float32), np.zeros(0, np.float32), voice(100.0, 0.01)):
        assert pitch_semitones(Waveform(samples, 16000)) is None


def test_silence_and_tempo_are_those_of_the_sound():
    rest = np.zeros(4000, np.float32)
    sound = Waveform(np.concatenate([rest, voice(150.0, 0.5), rest]), 16000)
    found = measures(sound, "oh ten", heard="oh ten")
    assert found["silence"] == pytest.approx(0.5, abs=0.02)
    assert found["words_per_second"] == pytest.approx(2 / 0.5, rel=0.03)
    assert found["word_error"] == 0.0


def test_what_cannot_be_measured_has_no_entry():
    assert measures(Waveform(np.zeros(8000, np.float32), 16000), "oh ten") == {}
    assert measures(Waveform(np.zeros(0, np.float32), 16000), "", heard="ten") == {}
    assert set(measures(Waveform(voice(150.0), 16000), "")) == {"silence", "pitch_semitones"}
    assert "word_error" not in measures(Waveform(voice(150.0), 16000), "oh ten")


@pytest.mark.parametrize("sample", [np.nan, np.inf, 3e38])
def test_what_a_broken_codec_gives_is_not_measured_and_does_no_harm(sample):
    broken = voice(150.0)
    broken[5000] = sample
    found = measures(Waveform(broken, 16000), "oh ten", heard="oh ten")
    assert found["word_error"] == 0.0
    assert all(np.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("said", "heard", "changes"),
    [
        ("oh ten it is", "oh ten it is", 0),
        ("oh ten it is", "oh two it is", 1),
        ("oh ten it is", "ten it is", 1),
        ("oh ten it is", "oh oh ten it is", 1),
        ("oh ten it is", "", 4),
        ("", "ten", 1),
        ("a b c d", "d c b a", 4),
        ("a b c d e f", "a x c e f g", 3),
    ],
)
def test_word_changes(said, heard, changes):
    assert word_changes(said.split(), heard.split()) == changes
