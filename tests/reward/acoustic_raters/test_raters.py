"""Acoustic raters on audio with known measures."""

import numpy as np
import pytest

from common.errors import InputError
from playground.voices import say
from reward.acoustic_raters.dnsmos import HOP, RATE, WINDOW, dnsmos
from reward.acoustic_raters.raters import (
    Pitch,
    ScoreAnchors,
    ScoreTarget,
    SignalQuality,
    Tempo,
    VoiceSimilarity,
    WordError,
)
from reward.acoustic_raters.voice_similarity import CepstralStatistics, cosine
from reward.server import score_replies
from reward.types import MissingScore, SpokenReply
from speech.audio import Waveform
from speech.types import Prompt
from tests.reward.spoken import spoken

VOICES = ("en-us+f2", "en-us+f5", "en-us+m1", "en-us+m3", "en-us+f3")
SENTENCES = ("the answer is forty two", "well then eight it is", "a small dog ran over the bridge", "nine and three")
HEARD = {"says": "Oh, eight it is!"}


class Ear:
    """A recogniser with a fixed transcript."""

    version = "ear-1"

    def __init__(self, word: str = "eight") -> None:
        self._word, self.asked = word, 0

    def hear(self, waveform):
        self.asked += 1
        return f"oh {self._word} it is"


def says(waveform):
    return HEARD["says"]


def numbers(waveform):
    return 7


def flat(waveform):
    return np.array([len(waveform.samples), waveform.rate], dtype=np.float32)


def reply(waveform: Waveform | None, text: str = "oh eight it is", **facts: str) -> SpokenReply:
    one = spoken(text)
    prompt = Prompt(id="p", token_ids=one.prompt.token_ids, text="", facts=facts)
    return SpokenReply(prompt=prompt, reply=one.reply, text=text, waveform=waveform)


def tone(hertz: float, seconds: float = 1.0, rate: int = 16000) -> Waveform:
    """Return a tone with harmonics, as a voice has."""
    time = np.arange(int(seconds * rate)) / rate
    parts = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6))
    return Waveform((0.2 * parts).astype(np.float32), rate)


ME = "tests.reward.acoustic_raters.test_raters"


@pytest.mark.parametrize(("measure", "score"), [(-1, 1.0), (2, 1.0), (3, 2.0), (6, 5.0), (9, 5.0)])
def test_a_measure_becomes_a_score_by_two_points(measure, score):
    assert ScoreAnchors(one=2, five=6).score(measure) == score
    assert ScoreAnchors(one=-2, five=-6).score(-measure) == score


@pytest.mark.parametrize(("measure", "score"), [(2, 5.0), (3, 5.0), (1, 3.0), (4, 3.0), (0, 1.0), (9, 1.0)])
def test_within_a_target_all_is_well(measure, score):
    assert ScoreTarget(low=2, high=3, tolerance=2).score(measure) == score


@pytest.mark.parametrize(
    ("recogniser", "arguments", "text", "score"),
    [
        ("Ear", {}, "oh eight it is", 5.0),
        ("Ear", {"word": "nine"}, "oh eight it is", 3.0),
        ("Ear", {"word": "nine"}, "Oh - EIGHT it is", 3.0),
        ("says", None, "oh eight it is", 5.0),
        ("says", None, "quite another text", 1.0),
    ],
)
def test_what_is_heard_is_compared_with_the_text(recogniser, arguments, text, score):
    rater = WordError(f"{ME}:{recogniser}", recogniser_arguments=arguments)
    assert rater.rate(reply(tone(200), text)) == score


def test_hearing_costs_one_hearing_and_is_noted_for_the_metrics():
    rater = WordError(f"{ME}:Ear")
    [card] = score_replies([rater], [reply(tone(200), "oh nine it is")], 10)
    assert card.scores == {"heard": 3.0}
    assert card.details["heard"] == "oh eight it is"
    assert card.details["heard_measure"] == "0.25 changes per word"
    assert card.measures["word_error"] == 0.25
    assert rater._recognise.__self__.asked == 1
    assert rater.rate(reply(None)) == MissingScore("no speech in the reply")
    assert rater.detail(reply(None)) == {}
    assert rater.rate(reply(tone(200), " ?! ")) == MissingScore("no text to compare with")


def test_languages_without_blanks_are_compared_by_character(monkeypatch):
    monkeypatch.setitem(HEARD, "says", "今天天气很好")
    rater = WordError(f"{ME}:says", unit="character", one=1.0)
    assert rater.rate(reply(tone(200), "今天，天气不好。")) == pytest.approx(5 - 4 / 6)


def test_a_recogniser_that_gives_no_words_gives_no_score():
    [card] = score_replies([WordError(f"{ME}:numbers")], [reply(tone(200))], 10)
    assert card.scores["heard"] == MissingScore("heard raised TypeError", fault="rater")


def test_pitch_and_tempo_against_a_range():
    octave = reply(tone(200))
    assert Pitch(low=10, high=13).rate(octave) == 5.0
    assert Pitch(low=15, high=18, tolerance=6).rate(octave) == pytest.approx(3.0, abs=0.05)
    assert Pitch(low=10, high=13).detail(octave) == {"pitch_measure": "12 semitones above 100 Hz"}
    assert Pitch(low=10, high=13).rate(spoken()) == MissingScore("no voiced sound")
    assert Tempo(low=3.8, high=4.2).rate(octave) == 5.0
    assert Tempo(low=2.0, high=3.0, tolerance=2.0).rate(octave) == pytest.approx(3.0, abs=0.1)
    silence = Waveform(np.zeros(16000, dtype=np.float32), 16000)
    assert Tempo(low=2, high=3).rate(reply(silence)) == MissingScore("no words or no sound to measure")
    assert Tempo(low=2, high=3).rate(reply(None)) == MissingScore("no speech in the reply")


def test_signal_quality_is_that_of_speechmos_for_a_window(monkeypatch):
    """Compare with speechmos' own class for each part, on audio as long as the model's window."""
    from speechmos import dnsmos as theirs

    # Input of another model that is not compared; computing it takes half a minute of compilation.
    monkeypatch.setattr(theirs.DNSMOS, "audio_melspec", lambda self, audio: np.zeros((900, 120)))
    clean = say("the answer is forty two and a small dog ran over the bridge", VOICES[0], 120, 50).at_rate(RATE)
    whole = np.resize(clean.samples, int(WINDOW * RATE)).astype(np.float32)
    found = theirs.run(whole, sr=RATE)
    window = Waveform(whole, RATE)
    for part, name in (("sig", "sig_mos"), ("bak", "bak_mos"), ("ovr", "ovrl_mos")):
        assert dnsmos(window, part) == pytest.approx(float(found[name]), abs=1e-4)
    noisy = Waveform(np.clip(whole + np.random.default_rng(0).normal(0, 0.1, len(whole)), -1, 1).astype("f4"), RATE)
    assert SignalQuality().rate(reply(noisy)) < SignalQuality().rate(reply(window)) - 0.5
    assert SignalQuality().rate(reply(Waveform(np.zeros(0, "f4"), RATE))) == MissingScore("no speech in the reply")


def test_a_longer_sound_is_heard_to_its_end():
    rng = np.random.default_rng(0)
    clean = np.resize(say(SENTENCES[2], VOICES[0], 150, 50).at_rate(RATE).samples, int((WINDOW + HOP) * RATE))
    spoiled = clean.copy()
    spoiled[int(WINDOW * RATE) :] = rng.normal(0, 0.3, len(clean) - int(WINDOW * RATE))
    assert dnsmos(Waveform(spoiled.clip(-1, 1), RATE), "ovr") < dnsmos(Waveform(clean, RATE), "ovr") - 0.1


def test_the_plain_embedder_tells_voices_apart_most_of_the_time():
    """It separates voices weakly, as its description says."""
    embed = CepstralStatistics().embed
    found = {(v, s): embed(say(s, v, 175, 50)) for v in VOICES for s in SENTENCES}
    pairs = [(a, b) for a in found for b in found if a < b]
    same = [cosine(found[a], found[b]) for a, b in pairs if a[0] == b[0]]
    other = [cosine(found[a], found[b]) for a, b in pairs if a[0] != b[0]]
    above = np.mean([one > two for one in same for two in other])
    assert 0.85 < above < 0.97
    quiet = say(SENTENCES[0], VOICES[0], 175, 50)
    softer = Waveform(quiet.samples * 0.1, quiet.rate)
    assert cosine(embed(quiet), embed(softer)) == pytest.approx(1.0, abs=1e-3)
    assert cosine(embed(quiet), embed(quiet.at_rate(44100))) > 0.99


def test_likeness_to_a_reference_voice(tmp_path):
    voice, other = say(SENTENCES[0], VOICES[0], 175, 50), say(SENTENCES[1], VOICES[2], 175, 50)
    voice.write(tmp_path / "voice.wav")
    other.write(tmp_path / "other.wav")
    rater = VoiceSimilarity(reference=str(tmp_path / "voice.wav"))
    near, far = (rater.rate(reply(say(SENTENCES[1], v, 175, 50))) for v in (VOICES[0], VOICES[2]))
    assert 4.0 < near <= 5.0
    assert far < near - 0.5
    assert rater.rate(reply(Waveform(np.zeros(16000, "f4"), 16000))) == MissingScore("no voice to compare")
    by_fact = VoiceSimilarity(fact="voice", sounds=str(tmp_path))
    assert by_fact.rate(reply(other, voice="other.wav")) == 5.0
    assert by_fact.rate(reply(other, voice="voice.wav")) < 5.0
    assert by_fact.rate(reply(other)) == MissingScore("no reference voice")
    [card] = score_replies([by_fact], [reply(other, voice="../other.wav")], 10)
    assert card.scores["likeness"] == MissingScore("likeness raised InputError", fault="rater")
    versions = {VoiceSimilarity(reference=str(tmp_path / name)).version for name in ("voice.wav", "other.wav")}
    own = VoiceSimilarity(reference=str(tmp_path / "voice.wav"), embedder=f"{ME}:flat")
    assert own.rate(reply(voice)) == 5.0
    assert len(versions | {own.version, by_fact.version}) == 4


def test_a_version_names_all_that_decides_a_score():
    made = [
        WordError(f"{ME}:Ear"),
        WordError(f"{ME}:Ear", recogniser_arguments={"word": "nine"}),
        WordError(f"{ME}:says"),
        WordError(f"{ME}:says", unit="character"),
        WordError(f"{ME}:says", one=1.0),
        SignalQuality(),
        SignalQuality(part="sig"),
        Pitch(low=1, high=2),
        Pitch(low=1, high=3),
        Tempo(low=1, high=2),
    ]
    assert len({rater.version for rater in made}) == len(made)
    assert WordError(f"{ME}:says", name="other").version == made[2].version


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: WordError("mine"), "recogniser: 'mine' is not of the form module:Class"),
        (lambda: WordError("no.such:Thing"), "recogniser: 'no.such:Thing' cannot be loaded"),
        (lambda: WordError(f"{ME}:Ear", {"ear": 1}), f"recogniser: '{ME}:Ear' cannot be built"),
        (lambda: WordError(f"{ME}:HEARD"), "is neither a function nor a class with the method 'hear'"),
        (lambda: WordError(f"{ME}:says", {"a": 1}), "recogniser_arguments: .* is a function"),
        (lambda: WordError(f"{ME}:says", unit="letter"), "unit: 'letter' is unknown; allowed: word, character"),
        (lambda: SignalQuality(part="all"), "part: 'all' is unknown; allowed: sig, bak, ovr"),
        (lambda: SignalQuality(one=3, five=3), "one, five: both are 3"),
        (lambda: Pitch(low=3, high=2), "low: 3 must not be above high, 2"),
        (lambda: Pitch(low=1, high=2, tolerance=0), "tolerance: 0 must be above 0"),
        (lambda: Tempo(low="fast", high=2), "low: 'fast' must be a finite number"),
        (VoiceSimilarity, "reference, fact: give one of them"),
        (lambda: VoiceSimilarity(reference="/no/such.wav"), "reference: '/no/such.wav' cannot be used"),
        (lambda: VoiceSimilarity(fact="voice"), "sounds: '' is not a folder"),
        (lambda: Tempo(low=1, high=2, name=""), "name: '' must be non-empty text"),
    ],
)
def test_impossible_arguments_are_refused(make, complaint):
    with pytest.raises(InputError, match=complaint):
        make()
