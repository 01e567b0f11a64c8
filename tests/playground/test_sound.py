"""Voices, codec, ears and raters on real sound."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import playground
from common.errors import InputError
from playground import raters, recogniser, task
from playground.codec import PlaygroundCodec
from playground.voices import ANSWERING, MANNERS, manner_named, say
from reward.types import MissingScore, SpokenReply
from speech.audio import Waveform
from speech.codecs.base import Codec
from speech.types import Finish, Prompt, Reply

pytestmark = pytest.mark.xdist_group("playground sound")

ROOT = Path(playground.__file__).parent.parent


def spoken_line(line: task.DialogueLine, waveform: Waveform | None, answer: str, manner: str) -> SpokenReply:
    prompt = Prompt(id="p", token_ids=np.zeros(1, np.int32), text="?", facts={"answer": answer, "manner": manner})
    empty = np.zeros(0, np.int32)
    reply = Reply(
        prompt_id="p", index=0, token_ids=empty, channels=empty.astype(np.int8), logps=empty.astype(np.float32),
        weight_version=0, finish=Finish.STOP, defect=None,
    )  # fmt: skip
    return SpokenReply(prompt=prompt, reply=reply, text=line.text, waveform=waveform)


@pytest.fixture(scope="module")
def spoken() -> list[tuple[task.DialogueLine, Waveform]]:
    """Forty-eight lines as the answering voice says them: twelve answers in each manner."""
    generator = np.random.default_rng(5)
    made = []
    for manner in MANNERS:
        for answer in task.ANSWERS[:12]:
            line = task.line(answer, manner)
            rate, pitch = manner.draw(generator)
            made.append((line, say(line.text, ANSWERING, rate, pitch)))
    return made


@pytest.fixture(scope="module")
def decoded(
    spoken: list[tuple[task.DialogueLine, Waveform]], codec: PlaygroundCodec
) -> list[tuple[task.DialogueLine, Waveform]]:
    return [(line, codec.decode(codec.encode(waveform))) for line, waveform in spoken]


def test_a_voice_says_something_trimmed(spoken: list[tuple[task.DialogueLine, Waveform]]):
    for _, waveform in spoken:
        assert waveform.rate == 22050
        assert waveform.samples.dtype == np.float32
        assert 0.4 < waveform.seconds < 2.0
        assert np.abs(waveform.samples).max() <= 1.0


def test_a_fresh_process_says_the_same():
    script = (
        "import hashlib; from playground.voices import ANSWERING, say; "
        "print(hashlib.sha256(say('oh ten it is', ANSWERING, 200, 78).samples.tobytes()).hexdigest())"
    )
    said = [subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True) for _ in range(2)]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("voice", "rate", "pitch", "message"),
    [
        ("no-such-voice", 150, 50, "no voice 'no-such-voice'"),
        (ANSWERING, 20, 50, "rate 20"),
        (ANSWERING, 150, 120, "range 120"),
    ],
)
def test_impossible_voices_are_refused(voice: str, rate: int, pitch: int, message: str):
    with pytest.raises(ValueError, match=message):
        say("ten", voice, rate, pitch)


def test_the_codec_keeps_what_is_said(decoded: list[tuple[task.DialogueLine, Waveform]]):
    heard = [raters.hearing().hear(waveform) == line.text for line, waveform in decoded]
    assert np.mean(heard) >= 0.85


def test_what_is_heard_depends_on_the_sound_alone(decoded: list[tuple[task.DialogueLine, Waveform]]):
    noise = np.random.default_rng(0)
    sounds = [
        Waveform((w.samples + noise.normal(scale=0.03, size=len(w.samples))).astype(np.float32), w.rate)
        for _, w in decoded[::2]
    ]
    there = [raters.hearing().hear(sound) for sound in sounds]
    back = [raters.hearing().hear(sound) for sound in reversed(sounds)]
    assert there == back[::-1]


def test_the_codec_is_a_codec_and_deterministic(
    codec: PlaygroundCodec, spoken: list[tuple[task.DialogueLine, Waveform]]
):
    assert isinstance(codec, Codec)
    waveform = spoken[0][1]
    codes = codec.encode(waveform)
    assert codes.dtype == np.int64
    assert len(codes) == int(np.ceil(waveform.seconds * codec.tokens_per_second))
    first, second = codec.decode(codes), codec.decode(codes)
    assert first.rate == codec.rate
    assert len(first.samples) == len(codes) * codec.rate / codec.tokens_per_second
    assert np.array_equal(first.samples, second.samples)


def test_a_codec_is_the_same_after_saving(codec: PlaygroundCodec, tmp_path: Path):
    codec.save(tmp_path / "codebook.safetensors")
    assert PlaygroundCodec.load(tmp_path).version == codec.version


def test_fitting_repeats(spoken: list[tuple[task.DialogueLine, Waveform]]):
    waveforms = [waveform for _, waveform in spoken[:12]]
    first = PlaygroundCodec.fit(waveforms, 32, 5, seed=1)
    assert first.version == PlaygroundCodec.fit(waveforms, 32, 5, seed=1).version
    assert first.codebook == 32
    with pytest.raises(ValueError, match="cannot make 100000 codes"):
        PlaygroundCodec.fit(waveforms, 100_000, 1, seed=1)


@pytest.mark.parametrize(("codes", "message"), [([], "at least one"), ([-1], "code -1"), ([0, 10**6], "code 1000000")])
def test_impossible_codes_are_refused(codec: PlaygroundCodec, codes: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        codec.decode(np.array(codes, dtype=np.int64))


def test_a_missing_or_broken_codec_names_its_file(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        PlaygroundCodec.load(tmp_path)
    (tmp_path / "codebook.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a safetensors file"):
        PlaygroundCodec.load(tmp_path)


def test_pitch_and_activity():
    rate = 16000
    seconds = np.arange(rate) / rate
    tone = (0.3 * np.sign(np.sin(2 * np.pi * 200.0 * seconds))).astype(np.float32)
    assert recogniser.pitch(Waveform(tone, rate)) == pytest.approx(12.0, abs=0.1)
    padded = np.concatenate([np.zeros(rate // 2), tone, np.zeros(rate)]).astype(np.float32)
    assert recogniser.active_seconds(Waveform(padded, rate)) == pytest.approx(1.0, abs=0.02)
    silence = Waveform(np.zeros(rate, dtype=np.float32), rate)
    assert recogniser.pitch(silence) is None
    assert recogniser.pitch(Waveform(tone[:100], rate)) is None
    assert recogniser.active_seconds(silence) == 0.0


def test_listeners_and_codec_take_a_sound_at_any_rate(
    spoken: list[tuple[task.DialogueLine, Waveform]], codec: PlaygroundCodec
):
    """Method §7, rule 2: what is measured, heard and coded belongs to the sound, not to its number of samples."""
    for line, waveform in spoken[::12]:
        other = waveform.at_rate(44100)
        one, two = (codec.encode(sound) for sound in (waveform, other))
        assert len(one) == len(two) == int(np.ceil(waveform.seconds * codec.tokens_per_second))
        assert np.mean(one == two) > 0.9
        assert recogniser.pitch(other) == pytest.approx(recogniser.pitch(waveform), abs=0.3)
        # In frames of 10 ms, which begin elsewhere at the other rate: either end may move by one and a half.
        assert recogniser.active_seconds(other) == pytest.approx(recogniser.active_seconds(waveform), abs=0.03)
        assert raters.hearing().hear(other) == line.text
        assert recogniser.signal_quality(other) == pytest.approx(recogniser.signal_quality(waveform), abs=0.1)


def test_signal_quality_prefers_the_original(
    spoken: list[tuple[task.DialogueLine, Waveform]], decoded: list[tuple[task.DialogueLine, Waveform]]
):
    original, coded = recogniser.signal_quality(spoken[0][1]), recogniser.signal_quality(decoded[0][1])
    assert 1.0 < coded < original < 5.0
    with pytest.raises(ValueError, match="empty"):
        recogniser.signal_quality(Waveform(np.zeros(0, np.float32), 16000))


def test_raters_on_clean_replies(decoded: list[tuple[task.DialogueLine, Waveform]]):
    for line, waveform in decoded:
        reply = spoken_line(line, waveform, task.said_answer(line.text) or "", line.manner.name)
        assert raters.Answer().rate(reply) == 5.0
        assert raters.Manner().rate(reply) > 4.4


def test_the_wrong_manner_costs_two_points_an_axis(decoded: list[tuple[task.DialogueLine, Waveform]]):
    line, waveform = decoded[0]
    assert line.manner == manner_named("high-fast")
    rater = raters.Manner()
    scores = {m.name: rater.rate(spoken_line(line, waveform, "ten", m.name)) for m in MANNERS}
    assert scores["high-slow"] == pytest.approx(3.0, abs=0.4)
    assert scores["low-fast"] == pytest.approx(3.0, abs=0.4)
    assert scores["low-slow"] == pytest.approx(1.0, abs=0.4)


def test_damage_is_heard(spoken: list[tuple[task.DialogueLine, Waveform]], codec: PlaygroundCodec):
    generator = np.random.default_rng(0)
    rater = raters.Heard()
    clean, damaged = [], []
    for line, waveform in spoken[::2]:
        codes = codec.encode(waveform)
        clean.append(rater.rate(spoken_line(line, codec.decode(codes), "ten", line.manner.name)))
        hit = generator.random(len(codes)) < 0.5
        codes = np.where(hit, generator.integers(codec.codebook, size=len(codes)), codes)
        damaged.append(rater.rate(spoken_line(line, codec.decode(codes), "ten", line.manner.name)))
    assert np.mean(clean) > np.mean(damaged) + 1.0


def test_a_wrong_or_empty_text_is_wrong(decoded: list[tuple[task.DialogueLine, Waveform]]):
    line, waveform = decoded[0]
    assert raters.Answer().rate(spoken_line(line, waveform, "eighteen", "high-fast")) == 1.0
    empty = dataclasses.replace(spoken_line(line, waveform, "ten", "high-fast"), text="")
    assert raters.Answer().rate(empty) == 1.0
    assert raters.Heard().rate(empty) == 1.0
    assert raters.Manner().rate(empty) == MissingScore("no text to measure the tempo by")


def test_what_cannot_be_measured_is_missing():
    line = task.line("ten", MANNERS[0])
    mute = spoken_line(line, None, "ten", "high-fast")
    assert raters.Answer().rate(mute) == 5.0
    assert raters.Heard().rate(mute) == raters.Manner().rate(mute) == raters.NO_SPEECH
    assert raters.Heard().hear(mute) == ""
    silent = spoken_line(line, Waveform(np.zeros(16000, np.float32), 16000), "ten", "high-fast")
    assert raters.Manner().rate(silent) == MissingScore("no voiced sound")
    assert raters.Manner().detail(silent) == {}


def test_heard_tells_what_it_heard(decoded: list[tuple[task.DialogueLine, Waveform]]):
    rater = raters.Heard()
    line, waveform = next((line, w) for line, w in decoded if raters.hearing().hear(w) == line.text)
    answer = task.said_answer(line.text) or ""
    reply = spoken_line(line, waveform, answer, line.manner.name)
    assert rater.hear(reply) == line.text
    assert rater.detail(reply) == {"heard": line.text, "spoken_right": "yes"}
    other = "ten" if answer != "ten" else "two"
    assert rater.detail(spoken_line(line, waveform, other, line.manner.name))["spoken_right"] == "no"
