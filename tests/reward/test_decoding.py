"""Decoders as real Ray actors: same audio as a server's own codec, shared work, no lost replies."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.actor_pool import poll_once
from cluster.monitored_actor import find_identity
from cluster.waiting import ActorFailed, CallTimeout
from data.records import read_demonstrations, read_prompts
from playground.codec import PlaygroundCodec
from reward.decoder_pool import DecodeFailed, DecoderConfig, SpeechDecoder, fetch_audio
from reward.pool import RewardPool
from reward.server import ClassSpec, RewardServer, RewardServerConfig
from reward.types import Scorecard
from speech.audio import Waveform
from speech.families import PLAYGROUND
from speech.types import Finish, Reply, ReplyGroup
from speech.vocabulary import Vocabulary

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("decoding")]
REPLIES = 12


class Noted:
    """The world's codec, which records the decoding process and can be slowed down."""

    def __init__(self, own: PlaygroundCodec, notes: str, seconds: float) -> None:
        self._own, self._notes, self._seconds = own, Path(notes), seconds
        self.rate, self.codebook, self.tokens_per_second = own.rate, own.codebook, own.tokens_per_second
        self.version = f"noted-{own.version}"
        self._notes.mkdir(exist_ok=True)

    @classmethod
    def load(cls, path: Path, notes: str, seconds: float = 0.0) -> "Noted":
        return cls(PlaygroundCodec.load(path), notes, seconds)

    def encode(self, waveform: Waveform) -> np.ndarray:
        return self._own.encode(waveform)

    def decode(self, codes: np.ndarray) -> Waveform:
        with (self._notes / str(os.getpid())).open("a") as file:
            file.write("x")
        time.sleep(self._seconds)
        return self._own.decode(codes)


class Broken(Noted):
    def decode(self, codes: np.ndarray) -> Waveform:
        raise ValueError("no weights")


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture(scope="module")
def groups(world, vocabulary) -> list[ReplyGroup]:
    """Return prompts, each with its demonstration and a text-only reply."""
    prompts = {prompt.id: prompt for prompt in read_prompts(world / "data/train.parquet", vocabulary)}
    demonstrations = read_demonstrations(world / "data/demonstrations.parquet", vocabulary)

    def reply(ids: np.ndarray, index: int, prompt_id: str) -> Reply:
        return Reply(
            prompt_id=prompt_id,
            index=index,
            token_ids=ids,
            channels=vocabulary.channels(ids),
            logps=np.zeros(len(ids), dtype=np.float32),
            weight_version=0,
            finish=Finish.STOP,
            defect=None,
        )

    found = []
    for d in [d for d in demonstrations if d.prompt_id in prompts][: REPLIES // 2]:
        mute = d.reply_ids[vocabulary.channels(d.reply_ids) == 0]
        found.append(
            ReplyGroup(
                prompt=prompts[d.prompt_id],
                replies=[reply(d.reply_ids, 0, d.prompt_id), reply(mute, 1, d.prompt_id)],
            )
        )
    return found


def settings(world, notes: Path, decoders: int, *, seconds: float = 0.0, codec: str = "Noted") -> RewardServerConfig:
    return RewardServerConfig(
        servers=1,
        needs={"CPU": 0.5},
        checkpoint=str(world / "base"),
        codec=ClassSpec(
            target=f"tests.reward.test_decoding:{codec}",
            kwargs={"path": str(world / "codec"), "notes": str(notes), "seconds": seconds},
        ),
        raters=(
            ClassSpec(target="playground.raters:Answer", kwargs={}),
            ClassSpec(target="playground.raters:Heard", kwargs={}),
        ),
        start_seconds=60,
        score_seconds=60,
        beat_seconds=60,
        decoders=DecoderConfig(decoders=decoders, needs={"CPU": 0.5}, start_seconds=60) if decoders else None,
    )


@pytest.fixture
def pool(world, cluster, tmp_path):
    """Make pools that end with the test."""
    made: list[RewardPool] = []

    def make(decoders: int, **more) -> tuple[RewardPool, list[tuple[str, dict]]]:
        events: list[tuple[str, dict]] = []
        given = settings(world, tmp_path / "notes", decoders, **more)
        made.append(RewardPool(given, PLAYGROUND, lambda kind, **fields: events.append((kind, fields))))
        return made[-1], events

    yield make
    for each in made:
        each.stop()


def ordered(pool: RewardPool, groups: list[ReplyGroup]) -> list[int]:
    return [pool.submit(group.prompt, reply) for group in groups for reply in group.replies]


def cards(pool: RewardPool, numbers: list[int]) -> list[Scorecard]:
    """Return the scorecards of these submissions, in order."""
    found: dict[int, Scorecard] = {}
    deadline = time.monotonic() + 90
    while not found.keys() >= set(numbers):
        assert time.monotonic() < deadline
        poll_once(pool._company)
        found |= dict(pool.collect())
    assert len(found) == len(numbers)
    return [found[number] for number in numbers]


def decoded(notes: Path) -> dict[int, int]:
    """Return the number of decoded replies by process."""
    return {int(path.name): path.stat().st_size for path in notes.iterdir()} if notes.exists() else {}


class Dying:
    def make(self) -> None:
        time.sleep(60)


def lost() -> ray.ObjectRef:
    """Return a reference that raises one of Ray's errors, as an object lost with its node does."""
    actor = ray.remote(Dying).options(num_cpus=0).remote()
    sound = actor.make.remote()
    ray.kill(actor)
    return sound


def test_sounds_and_scores_are_those_of_a_server_that_decodes_by_itself(world, pool, groups, tmp_path):
    alone = RewardServer(settings(world, tmp_path / "alone", 0), PLAYGROUND)
    together, events = pool(2)
    versions = together.start()
    assert versions == alone.versions()
    assert versions["codec"].startswith("noted-")
    ids = [reply.token_ids for group in groups for reply in group.replies]
    for here, there in zip(alone.decode(ids), together.decode(ids), strict=True):
        assert (here is None) == (there is None)
        if there is not None:
            assert there.rate == here.rate == 16000
            assert np.array_equal(there.samples, here.samples)
            assert there.samples.flags.writeable
    own = alone.score(groups)
    assert {card.seconds > 0 for row in own for card in row} == {True, False}
    assert together.score(groups) == own
    assert cards(together, ordered(together, groups)) == [card for row in own for card in row]
    heard = "playground.recogniser:signal_quality"
    assert together.measure(heard, ids[:3]) == alone.measure(heard, [s for s in alone.decode(ids[:3]) if s is not None])
    assert "actor_died" not in [kind for kind, _ in events]
    names = [waiting.name for waiting in together.decoders.pending_calls()]
    assert names == ["decoder-0", "decoder-1"]


def test_a_server_has_no_codec_where_decoders_have_it(world, groups, tmp_path):
    server = RewardServer(settings(world, tmp_path / "notes", 1), PLAYGROUND)
    assert "codec" not in server.versions()
    assert not (tmp_path / "notes").exists()
    decoder = SpeechDecoder(str(world / "base"), settings(world, tmp_path / "notes", 1).codec, PLAYGROUND)
    [speaks, sound, none] = decoder.decode([reply.token_ids for reply in groups[0].replies])
    assert speaks == [True, False]
    assert sound.rate == 16000
    assert none is None


def test_decoders_share_the_work_and_are_counted_like_other_members(pool, groups, tmp_path):
    made, _ = pool(2, seconds=0.1)
    made.start()
    numbers = ordered(made, groups)
    assert made.decoders.status().queued == REPLIES
    assert made.status().queued == 0
    cards(made, numbers)
    shares = decoded(tmp_path / "notes")
    assert len(shares) == 2
    assert sum(shares.values()) == REPLIES // 2  # those with speech
    assert made.decoders.busy_seconds > 0
    made.decoders.resize(3)
    deadline = time.monotonic() + 60
    while made.decoders.names != ["decoder-0", "decoder-1", "decoder-2"]:
        assert time.monotonic() < deadline
        poll_once(made._company)
    made.decoders.resize(1)
    cards(made, ordered(made, groups))
    assert made.decoders.names == ["decoder-0"]


def test_the_work_of_a_decoder_that_dies_is_done_by_another(pool, groups, tmp_path):
    made, events = pool(2, seconds=0.5)
    made.start()
    pids = {find_identity(waiting.actor).pid for waiting in made.decoders.pending_calls()}
    numbers = ordered(made, groups)
    deadline = time.monotonic() + 30
    while not (at_work := decoded(tmp_path / "notes")):
        assert time.monotonic() < deadline
        poll_once(made._company)
    victim = next(iter(at_work))
    assert victim in pids
    os.kill(victim, signal.SIGKILL)
    found = cards(made, numbers)
    assert [card.seconds > 0 for card in found] == [True, False] * (REPLIES // 2)
    [(_, death)] = [event for event in events if event[0] == "actor_died"]
    assert death["member"].startswith("decoder-")
    assert death["items"] >= 1
    while len(made.decoders.names) < 2:
        assert time.monotonic() < deadline + 60
        poll_once(made._company)
    assert {find_identity(waiting.actor).pid for waiting in made.decoders.pending_calls()} != pids
    assert made.decoders.status().restarts == 1


def test_a_sound_that_is_lost_is_made_again(pool, groups, monkeypatch):
    """Audio can be lost with its node; no actor is considered dead because of it."""
    made, events = pool(1)
    made.start()
    whole = made.score(groups)
    own, gone = made.decoders.collect, lost()

    def once() -> list:
        sounds = own()
        if sounds:
            monkeypatch.setattr(made.decoders, "collect", own)
        return [(number, gone) for number, _ in sounds]

    monkeypatch.setattr(made.decoders, "collect", once)
    assert cards(made, ordered(made, groups)) == [card for row in whole for card in row]
    assert events == []
    monkeypatch.setattr(made.decoders, "collect", lambda: [(number, gone) for number, _ in own()])
    with pytest.raises(CallTimeout, match=r"the audio of reply 0 to prompt train-\d+ was lost 4 times: ActorDiedError"):
        cards(made, ordered(made, groups[:1]))


def test_what_is_lost_is_told_from_what_is_there(cluster):
    there = Waveform(np.ones(4, dtype=np.float32), 24000)
    found = fetch_audio([ray.put(there), None, lost()])
    assert found[0].rate == 24000
    assert found[0].samples.tolist() == there.samples.tolist()
    assert found[1] is None
    assert isinstance(found[2], DecodeFailed)
    assert "ActorDiedError" in found[2].reason


def test_a_codec_that_does_not_decode_ends_the_run_with_its_words(pool, groups):
    made, events = pool(1, codec="Broken")
    made.start()
    with pytest.raises(ActorFailed, match=r"decoder-0 failed while decoding replies, 2 times .*no weights"):
        cards(made, ordered(made, groups))
    assert [kind for kind, _ in events] == ["task_failed"]


def test_what_is_given_up_does_not_come_later(pool, groups):
    made, _ = pool(1, seconds=0.2)
    made.start()
    before = ordered(made, groups)
    poll_once(made._company)
    made.abort_all()
    after = ordered(made, groups[:1])
    assert len(cards(made, after)) == 2
    assert not set(before) & set(after)
