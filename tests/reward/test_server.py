"""The reward server with the playground's codec and raters, and with failing raters."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import InputError
from data.records import read_demonstrations, read_prompts
from playground.codec import PlaygroundCodec
from reward.server import ClassSpec, RewardServer, RewardServerConfig, load_object
from reward.types import MissingScore, SpokenReply
from speech.audio import Waveform
from speech.families import PLAYGROUND
from speech.types import Finish, Reply, ReplyGroup
from speech.vocabulary import Channel, Vocabulary


class Broken:
    name = "broken"
    version = "1"

    def rate(self, spoken):
        raise TimeoutError("no answer")


def settings(world, *raters: str) -> RewardServerConfig:
    return RewardServerConfig(
        servers=1,
        needs={"CPU": 1},
        checkpoint=str(world / "base"),
        codec=ClassSpec(target="playground.codec:PlaygroundCodec", kwargs={"path": str(world / "codec")}),
        raters=tuple(ClassSpec(target=rater, kwargs={}) for rater in raters),
        start_seconds=60,
        score_seconds=60,
        beat_seconds=60,
    )


@pytest.fixture(scope="module")
def group(world) -> ReplyGroup:
    """Return a prompt with its demonstration as the only reply."""
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    prompt = read_prompts(world / "data/train.parquet", vocabulary)[0]
    demonstrations = read_demonstrations(world / "data/demonstrations.parquet", vocabulary)
    ids = next(d.reply_ids for d in demonstrations if d.prompt_id == prompt.id)
    reply = Reply(
        prompt_id=prompt.id,
        index=0,
        token_ids=ids,
        channels=vocabulary.channels(ids),
        logps=np.zeros(len(ids), dtype=np.float32),
        weight_version=0,
        finish=Finish.STOP,
        defect=None,
    )
    return ReplyGroup(prompt=prompt, replies=[reply])


def test_a_demonstration_is_scored_by_ear(world, group):
    raters = ("Answer", "Heard", "Manner", "SpokenRight")
    server = RewardServer(settings(world, *(f"playground.raters:{name}" for name in raters)), PLAYGROUND)
    [[card]] = server.score([group])
    assert set(card.scores) == {"answer", "heard", "manner", "spoken_right"}
    assert all(isinstance(score, MissingScore) or 1.0 <= score <= 5.0 for score in card.scores.values())
    assert card.details["text"]
    assert card.details["heard"]
    assert 0.3 < card.seconds < 5.0
    assert set(card.measures) == {"pitch_semitones", "silence", "words_per_second", "word_error"}
    assert set(server.versions()) == {"answer", "heard", "manner", "spoken_right", "codec"}


def test_a_rater_that_raises_is_missing_and_the_others_go_on(world, group):
    """Method §7, rule 1."""
    server = RewardServer(settings(world, f"{__name__}:Broken", "playground.raters:Answer"), PLAYGROUND)
    [[card]] = server.score([group])
    assert card.scores["broken"] == MissingScore("broken raised TimeoutError", fault="rater")
    assert "no answer" in card.details["broken_error"]
    assert card.number("answer") is not None
    assert card.number("broken") is None


class Odd:
    name = "odd"
    version = "1"

    def __init__(self, score=None):
        self.score = score

    def rate(self, spoken):
        return self.score


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "5", None, True])
def test_what_is_no_number_is_missing(world, group, score):
    """Method §7, rule 1."""
    part = ClassSpec(target=f"{__name__}:Odd", kwargs={"score": score})
    server = RewardServer(replace(settings(world), raters=(part,)), PLAYGROUND)
    [[card]] = server.score([group])
    assert card.scores["odd"] == MissingScore("odd gave no finite number", fault="rater")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finish": Finish.LENGTH}, "truncated reply"),
        ({"finish": Finish.ABORTED}, "aborted reply"),
        ({"defect": "token 3 is END"}, "malformed reply"),
    ],
)
def test_unfinished_replies_are_not_scored(world, group, change, reason):
    """Method §7, rule 5."""
    server = RewardServer(settings(world, "playground.raters:Answer"), PLAYGROUND)
    damaged = ReplyGroup(prompt=group.prompt, replies=[replace(group.replies[0], **change)])
    [[card]] = server.score([damaged])
    assert card.scores == {"answer": MissingScore(reason)}
    assert card.measures == {}


class Hum:
    """A codec at another sample rate: every code is half a second of a tone."""

    rate, codebook, tokens_per_second, version = 22050, 512, 2.0, "hum"

    @classmethod
    def load(cls, path):
        return cls()

    def decode(self, codes):
        seconds = np.arange(len(codes) * self.rate // 2) / self.rate
        return Waveform(np.sin(2 * np.pi * 220 * seconds).astype(np.float32), self.rate)


class Ear:
    """Record the sample rate and the length of its audio."""

    name, version = "ear", "1"

    def rate(self, spoken):
        return 3.0

    def detail(self, spoken):
        return {"heard at": f"{spoken.waveform.rate} Hz, {spoken.waveform.seconds:g} s"}


def test_raters_hear_at_the_codecs_own_rate(world, group):
    """Method §7, rule 2: the released code labels 22,050 Hz as 24,000."""
    codec = ClassSpec(target=f"{__name__}:Hum", kwargs={"path": "nowhere"})
    server = RewardServer(replace(settings(world, f"{__name__}:Ear"), codec=codec), PLAYGROUND)
    [[card]] = server.score([group])
    seconds = (group.replies[0].channels == Channel.SPEECH).sum() / 2
    assert card.seconds == pytest.approx(seconds)
    assert card.details["heard at"] == f"22050 Hz, {seconds:g} s"
    [heard] = server.decode([group.replies[0].token_ids])
    assert heard.rate == 22050


def test_every_score_can_be_traced_to_versions(world):
    """Method §7, rule 9: versions of each rater and of the codec."""
    server = RewardServer(settings(world, "playground.raters:Answer", f"{__name__}:Broken"), PLAYGROUND)
    codec = PlaygroundCodec.load(world / "codec")
    assert server.versions() == {"answer": "playground-answer-1", "broken": "1", "codec": codec.version}


def test_a_reply_that_is_there_is_rated_as_it_is_by_those_who_are_named(world, group):
    """Text and audio may differ from those of the tokens."""
    server = RewardServer(settings(world, "playground.raters:Answer", f"{__name__}:Broken"), PLAYGROUND)
    text = f"oh {group.prompt.facts['answer']} it is"
    spoken = SpokenReply(prompt=group.prompt, reply=group.replies[0], text=text, waveform=None)
    [right, wrong] = server.rate([spoken, replace(spoken, text="oh it is")], ["answer"])
    assert (right.scores, wrong.scores) == ({"answer": 5.0}, {"answer": 1.0})
    assert right.seconds == 0.0


def test_a_reply_without_speech_is_missing_to_the_ear(world, group):
    server = RewardServer(settings(world, "playground.raters:Answer", "playground.raters:Heard"), PLAYGROUND)
    whole = group.replies[0]
    text = whole.token_ids[whole.channels == 0]
    mute = replace(whole, token_ids=text, channels=np.zeros(len(text), dtype=np.int8))
    [[card]] = server.score([ReplyGroup(prompt=group.prompt, replies=[mute])])
    assert card.number("answer") is not None
    assert isinstance(card.scores["heard"], MissingScore)
    assert card.seconds == 0.0


@pytest.mark.parametrize("name", ["playground.raters", "nowhere:Rater", "playground.raters:Nobody"])
def test_names_that_lead_nowhere(name):
    with pytest.raises(InputError, match=r"Rater|Nobody|form module:Class"):
        load_object(name)
