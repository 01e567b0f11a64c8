"""The playground's judge as a process behind HTTP, with all of its faults."""

import logging
import pickle
import time

import pytest

from common.errors import InputError
from playground.judge import FAULTS, TestJudge
from playground.raters import Answer
from reward.remote.http_judge import ApiKey, HttpJudge
from reward.server import score_replies
from reward.types import MissingScore, RaterOutput
from tests.reward.judges import KEY, Process
from tests.reward.spoken import spoken

RIGHT, WRONG = spoken("oh eight it is"), spoken("oh nine it is")
REASONS = {
    "error": {"server error"},
    "busy": {"rate limited"},
    "refused": {"refused"},
    "garbage": {"not understood"},
    "wrong": {"not a number", "out of range"},
    "mistyped": {"not understood"},
    "slow": {"timeout"},
    "drip": {"timeout"},
    "hangup": {"connection failed"},
    "halfway": {"connection failed"},
    "flood": {"not understood"},
    "echo": {"refused"},
}
"""Reason of the missing score by fault."""


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    process = Process(tmp_path_factory.mktemp("judge"), "--key-env", "JUDGE_KEY", "--seed", "3")
    yield process
    process.end()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture(autouse=True)
def healthy(judge):
    judge.fail()


def different(count: int) -> list:
    return [spoken(sound=number) for number in range(count)]


def test_a_judge_elsewhere_says_what_it_says_here(judge):
    rated = judge.rater().rate_all([RIGHT, WRONG], 10)
    assert rated == [
        RaterOutput(score=5.0, details={"judge_reason": "'oh eight it is' to 'three plus five'"}),
        RaterOutput(score=1.0, details={"judge_reason": "'oh nine it is' to 'three plus five'"}),
    ]


def test_no_proxy_leads_to_a_judge_on_this_machine(judge, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert judge.rater().rate(RIGHT) == 5.0


def test_it_hears_the_waveform(judge, tmp_path):
    """The ear of the playground at the other end of the connection needs the samples and their rate."""
    from playground.task import line
    from playground.voices import ANSWERING, manner_named, say

    said = line("eight", manner_named("high-fast"))
    sound = say(said.text, ANSWERING, 200, 70)
    reply = type(RIGHT)(prompt=RIGHT.prompt, reply=RIGHT.reply, text=said.text, waveform=sound)
    listener = Process(tmp_path, "--rater", "spoken_right")
    try:
        rater = listener.rater(version="playground-spoken-right-2", deadline=60)
        assert rater.rate(reply) == 5.0
    finally:
        listener.end()


@pytest.mark.parametrize("fault", REASONS)
def test_no_fault_becomes_a_score(judge, fault):
    """Method §7, rule 1: whatever a judge does, its score is right or missing, by a known reason and in time."""
    judge.fail(**{fault: 1.0})
    waits = fault in ("slow", "drip")
    patience = {"timeout": 0.5, "deadline": 5.0} if waits else {}
    rater = judge.rater(concurrency=12, **patience)
    started = time.monotonic()
    rated = rater.rate_all(different(12), 30)
    assert time.monotonic() - started < (6 if waits else 30)
    assert {one.score.reason for one in rated} == REASONS[fault]
    assert {one.score.fault for one in rated} == {"rater"}
    again = fault in ("error", "busy", "slow", "drip", "hangup", "halfway")
    assert rater.counters()["calls"] == (24 if again else 12)
    assert rater.counters()["retries"] == (12 if again else 0)
    assert KEY not in repr(rated) + repr(rater)
    if fault == "flood":
        assert rated[0].details["judge_error"] == "the answer is longer than 65536 bytes"


def test_every_fault_is_tried():
    assert set(REASONS) | {"repeat"} == set(FAULTS)


def test_one_bad_answer_leaves_the_others_as_they_are(judge):
    """Some of many replies fail in different ways; all others get the right score."""
    judge.fail(error=0.1, garbage=0.1, wrong=0.2, hangup=0.1, slow=0.05)
    replies = [spoken(words, sound=n) for n in range(20) for words in ("oh eight it is", "oh nine it is")]
    rated = judge.rater(retries=0, concurrency=20, timeout=2).rate_all(replies, 30)
    numbers = [one.score for one in rated if not isinstance(one.score, MissingScore)]
    assert 10 < len(numbers) < 35
    for reply, one in zip(replies, rated, strict=True):
        assert isinstance(one.score, MissingScore) or one.score == Answer().rate(reply)


def test_the_same_seed_fails_alike():
    def draws(seed: int) -> list[str]:
        judge = TestJudge("answer", {"error": 0.3, "slow": 0.3}, seed, 1.0)
        return [judge.draw(question)[0] for question in (b"a", b"b", b"c", b"a") * 5]

    assert draws(1) == draws(1) != draws(2)
    assert set(draws(1)) == {"", "error", "slow"}


def test_the_key_is_sent_and_never_shown(judge, monkeypatch, caplog, capfd):
    """A server may quote what it was sent, in an error or in its reason."""
    with caplog.at_level(logging.DEBUG):
        judge.fail(echo=1.0)
        refused = judge.rater().rate_all([RIGHT], 10)
        judge.fail(repeat=1.0)
        repeated = judge.rater().rate_all([RIGHT], 10)
        judge.fail(hangup=1.0)
        broken = judge.rater().rate_all([RIGHT], 10)
        monkeypatch.setenv("JUDGE_KEY", "another-key-that-is-wrong")
        judge.fail()
        strange = judge.rater().rate_all([RIGHT], 10)
    assert repeated[0].score == 5.0
    assert repeated[0].details == {"judge_reason": "asked with the key [key]"}
    assert strange[0].score == MissingScore("refused", fault="rater")
    rater = judge.rater()
    shown = [caplog.text, *capfd.readouterr(), repr([refused, repeated, broken, strange]), repr(rater)]
    shown += [repr(vars(rater)), repr(rater.settings), repr(rater.cache.table().to_pylist())]
    for text in shown:
        assert "key-that" not in text
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(ApiKey(KEY))


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "line\nbreak-of-key", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(judge, monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY") if value is None else monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(InputError, match="JUDGE_KEY") as refused:
        judge.rater()
    assert not (value or "").strip() or value not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"url": "judge.example"}, "url: expected an address"),
        ({"url": "ftp://judge.example/"}, "url: expected an address"),
        ({"url": "http://"}, "url: expected an address"),
        ({"url": "http://judge.example:0/"}, "url: expected an address"),
        ({"url": "http://judge.example:port/"}, "url: expected an address"),
        ({"url": 7}, "url: expected text"),
        ({"url": "https://me:pass@judge.example/"}, "url: holds a name or a password"),
        ({"url": "https://judge.example/?x=1&API_key=pass@1"}, "url: holds 'API_key'"),
        ({"api_key_env": "sk-pass@1"}, "api_key_env: expected the name of an environment variable"),
        ({"address": "pass@1"}, "unknown argument 'address'; allowed: name, version"),
        ({"timeout": 0}, "timeout: 0 must be above 0"),
        ({"lowest": 5}, "lowest: 5 must be below highest"),
    ],
)
def test_impossible_arguments_are_refused(judge, changes, complaint):
    arguments = {"name": "judge", "version": "1", "url": judge.url} | changes
    with pytest.raises(InputError, match=complaint) as refused:
        HttpJudge.check(arguments)
    assert "pass@" not in str(refused.value)
    with pytest.raises(InputError, match="argument 'version' is missing"):
        HttpJudge.check({"name": "judge", "url": judge.url})


def test_a_judge_of_another_version_gives_no_score(judge):
    rated = judge.rater(version="older").rate_all([RIGHT], 10)
    assert rated[0].score == MissingScore("other version", fault="rater")
    assert "reports version 'playground-answer-1', not 'older'" in rated[0].details["judge_error"]


def test_a_judge_that_is_gone_is_left_alone(judge, tmp_path):
    """The first calls fail to connect; the others are not made."""
    gone = Process(tmp_path)
    gone.end()
    rater = gone.rater(retries=0, breaker_failures=4, concurrency=2)
    scores = [one.score for one in rater.rate_all(different(40), 10)]
    reasons = [score.reason for score in scores if isinstance(score, MissingScore)]
    assert set(reasons) == {"connection failed", "judge unavailable"}
    assert len(reasons) == 40
    assert rater.counters()["calls"] <= 5
    started = time.monotonic()
    [again] = rater.rate_all([spoken(sound=99)], 10)
    assert time.monotonic() - started < 2  # a call alone may take 20
    assert again.score == MissingScore("judge unavailable", fault="rater")


def test_the_others_rate_while_the_judge_is_asked(judge):
    """A card has every rater's score in its place, the judge's reason, and Missing where a rater failed."""

    class Quick:
        name, version = "quick", "1"

        def rate(self, spoken):
            return 2.0

    class Faulty:
        name, version = "faulty", "1"

        def rate_all(self, spoken, seconds):
            raise RuntimeError(KEY)

    class Short(Faulty):
        name = "short"

        def rate_all(self, spoken, seconds):
            return [RaterOutput(score=1.0)]

    class Odd(Faulty):
        name = "odd"

        def rate_all(self, spoken, seconds):
            return [RaterOutput(score=score) for score in (True, 4)]

    judge.fail(slow=1.0)
    slow = judge.rater(name="slow", timeout=0.3, retries=0)
    found = score_replies([Quick(), slow, Faulty(), Short(), Odd()], [RIGHT, WRONG], 5)
    assert [list(card.scores) for card in found] == [["quick", "slow", "faulty", "short", "odd"]] * 2
    assert found[1].scores == {
        "quick": 2.0,
        "slow": MissingScore("timeout", fault="rater"),
        "faulty": MissingScore("faulty raised RuntimeError", fault="rater"),
        "short": MissingScore("short raised ValueError", fault="rater"),
        "odd": 4.0,
    }
    assert found[0].scores["odd"] == MissingScore("odd gave no finite number", fault="rater")
    assert KEY not in repr(found)
