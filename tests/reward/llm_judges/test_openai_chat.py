"""A chat model as a judge: good, slow, wrong, out-of-range and failing answers."""

import base64
import io
import json
import logging
import pickle
import time

import numpy as np
import pytest
import soundfile

from common.errors import InputError
from reward.llm_judges.openai_chat import ChatJudge
from reward.llm_judges.prompts import NO_SOUND
from reward.remote.http_judge import encode_wav
from reward.types import MissingScore, RaterOutput
from speech.audio import Waveform
from tests.reward.chat_service import GOOD, USAGE, WAYS, Service
from tests.reward.spoken import spoken

KEY = "sk-a-key-that-must-stay-hidden"
COST = (300 * 2.0 + 20 * 8.0) / 1e6
"""Cost of one answer, by the prices of `Service.rater`."""
REASONS = {
    **dict.fromkeys(("words", "fenced", "fields", "more", "twice", "unreasoned", "empty", "cut"), "not understood"),
    **dict.fromkeys(("choiceless", "list", "html", "flood"), "not understood"),
    **dict.fromkeys(("text", "true", "nan"), "not a number"),
    **dict.fromkeys(("high", "low", "endless"), "out of range"),
    **dict.fromkeys(("refusal", "filtered", "key", "field", "nowhere"), "refused"),
    "other": "other version",
    "busy": "rate limited",
    **dict.fromkeys(("fault", "away"), "server error"),
    **dict.fromkeys(("drop", "broken"), "connection failed"),
    "slow": "timeout",
}
"""Reason of the missing score by behaviour of the service."""
AGAIN = ("busy", "fault", "away", "drop", "broken", "slow")
"""Behaviours that are retried."""
FREE = (*AGAIN, "key", "field", "nowhere", "html", "list", "flood")
"""Behaviours without usage in the answer."""


@pytest.fixture(scope="module")
def service():
    started = Service()
    yield started
    started.end()


@pytest.fixture(autouse=True)
def well(service):
    service.does(["well"])


def different(count: int) -> list:
    return [spoken(sound=number) for number in range(count)]


def heard(part: dict) -> Waveform:
    assert part["type"] == "input_audio"
    assert part["input_audio"]["format"] == "wav"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])), dtype="float32")
    return Waveform(samples, rate)


def test_a_good_answer_is_a_score_with_its_reason_and_its_price(service):
    rater = service.rater()
    assert rater.rate_all(different(3), 20) == [RaterOutput(score=4.5, details={"judge_reason": "clear and right"})] * 3
    counted = rater.counters()
    assert counted["calls"] == len(service.asked) == 3
    assert counted["failures"] == counted["retries"] == 0
    assert (counted["input_tokens"], counted["output_tokens"]) == (900.0, 60.0)
    assert counted["cost"] == pytest.approx(3 * COST, rel=1e-12)
    assert rater.rate_all(different(3), 20)[0].score == 4.5
    assert rater.counters()["cache_hits"] == 3
    assert len(service.asked) == 3


def test_it_is_shown_the_rubric_the_words_and_the_sound_of_question_and_reply(service, tmp_path):
    question = Waveform(np.linspace(-0.5, 0.5, 500, dtype=np.float32), 8000)
    question.write(tmp_path / "questions/a.wav")
    one = spoken('he said "stop"', question_audio="questions/a.wav")
    rater = service.rater(rubric="acoustic", sounds=str(tmp_path), facts=["answer", "manner"])
    assert rater.rate(one) == 4.5
    [asked] = service.asked
    assert asked["path"] == "/v1/chat/completions"
    assert asked["model"] == "judge"
    assert asked["temperature"] == 0
    form = asked["response_format"]["json_schema"]
    assert form["strict"]
    assert list(form["schema"]["properties"]) == form["schema"]["required"] == ["reason", "score"]
    system, user = asked["messages"]
    assert system["role"] == "system"
    assert "how a voice assistant sounds" in system["content"]
    assert "from 1 to 5" in system["content"]
    request, _, first, fact, words, _, second = user["content"]
    assert request["text"].endswith('"three plus five"')
    assert fact["text"].endswith('answer: "eight"')
    assert words["text"].endswith('"he said \\"stop\\""')
    assert heard(first).rate == 8000
    np.testing.assert_allclose(heard(first).samples, question.samples, atol=1e-4)
    assert heard(second).rate == one.waveform.rate
    np.testing.assert_allclose(heard(second).samples, one.waveform.samples, atol=1e-4)


def test_a_question_that_cannot_be_heard_is_no_score(service, tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"no sound")
    rater = service.rater(sounds=str(tmp_path))
    named = [spoken(question_audio=name) for name in ("gone.wav", "../outside.wav", "noise.wav")]
    rated = rater.rate_all([*named, spoken()], 20)
    assert [one.score for one in rated] == [MissingScore(NO_SOUND, fault="rater")] * 3 + [4.5]
    assert "gone.wav" in rated[0].details["judge_error"]
    assert "not below" in rated[1].details["judge_error"]
    assert len(service.asked) == 1
    without = service.rater()  # no folder: the question is given as text
    assert without.rate(named[0]) == 4.5
    assert [part["type"] for part in service.asked[1]["messages"][1]["content"]].count("input_audio") == 1


def test_a_judge_that_reads_gets_no_sound(service):
    rater = service.rater(rubric="semantic", listens=False)
    assert rater.rate(spoken(sound=None)) == 4.5
    assert service.asked[0]["messages"][1]["content"].splitlines() == [
        'The caller\'s request in words: "three plus five"',
        'The assistant\'s reply in words: "oh eight it is"',
    ]


@pytest.mark.parametrize("way", REASONS)
def test_nothing_but_a_good_answer_becomes_a_score(service, way):
    """Method §7, rule 1: every reply is right or missing, by a known reason, and what it cost is counted."""
    service.does([way])
    rater = service.rater(served="judge-2026", **({"timeout": 0.3} if way == "slow" else {}))
    started = time.monotonic()
    rated = rater.rate_all(different(6), 30)
    assert time.monotonic() - started < 6
    assert {one.score for one in rated} == {MissingScore(REASONS[way], fault="rater")}
    assert all(one.details["judge_error"] for one in rated)
    counted = rater.counters()
    calls = 12 if way in AGAIN else 6
    assert counted["failures"] == 6
    assert counted["calls"] == len(service.asked) == calls  # the client itself does not retry
    assert counted["retries"] == calls - 6
    paid = {} if way in FREE else {"input_tokens": 1800.0, "output_tokens": 120.0, "cost": pytest.approx(6 * COST)}
    assert {name: counted[name] for name in ("input_tokens", "output_tokens", "cost") if name in counted} == paid
    assert len(rater.cache) == 0


def test_every_way_is_tried():
    assert set(REASONS) == set(WAYS) - {"well"} | {"slow", "drop", "broken"}


def test_of_many_replies_those_that_were_answered_have_their_score(service):
    service.does(["well", "fault", "words", "well", "high", "key", "well", "drop", "well"])
    rated = service.rater(retries=0, concurrency=1).rate_all(different(9), 30)
    reasons = [one.score.reason if isinstance(one.score, MissingScore) else one.score for one in rated]
    assert reasons == [
        *(4.5, "server error", "not understood", 4.5, "out of range", "refused", 4.5, "connection failed", 4.5)
    ]


def test_it_waits_as_long_as_it_is_asked_to(service):
    service.does(["busy", "well"])
    service.wait = "1"
    assert service.rater().rate(spoken()) == 4.5
    first, second = service.asked
    assert 1.0 <= second["at"] - first["at"] < 3.0


def test_a_service_that_is_down_is_left_alone(service):
    service.does(["away"])
    rater = service.rater(retries=0, breaker_failures=3, concurrency=1)
    reasons = [one.score.reason for one in rater.rate_all(different(10), 20)]
    assert reasons == ["server error"] * 3 + ["judge unavailable"] * 7
    assert rater.circuit_open


def test_the_key_is_sent_and_never_shown(service, monkeypatch, caplog, capfd):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setitem(WAYS, "repeat", (200, WAYS["well"][1].replace(b"clear", KEY.encode())))
    monkeypatch.setitem(WAYS, "echo", (401, json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode()))
    service.does(["repeat", "echo", "drop"])
    rater = service.rater(api_key_env="JUDGE_KEY", retries=0, concurrency=1)
    with caplog.at_level(logging.DEBUG):
        rated = rater.rate_all(different(3), 20)
    assert service.asked[0]["headers"]["authorization"] == f"Bearer {KEY}"
    assert rated[0].details == {"judge_reason": "[key] and right"}
    shown = [caplog.text, *capfd.readouterr(), repr(rated), repr(rater), repr(vars(rater)), repr(rater.settings)]
    for text in [*shown, repr(rater.cache.table().to_pylist())]:
        assert "key-that" not in text
    with pytest.raises(TypeError):
        pickle.dumps(rater)


def test_what_is_meant_for_another_service_is_not_sent(service, monkeypatch):
    """The openai client reads keys and names for OpenAI from the environment."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert service.rater().rate(spoken()) == 4.5
    headers = service.asked[0]["headers"]
    assert "authorization" not in headers
    assert KEY not in repr(headers)


def test_a_cost_that_the_service_names_is_believed_and_without_prices_there_is_none(service, monkeypatch):
    named = json.loads(WAYS["well"][1]) | {"usage": USAGE | {"cost": 0.25}}
    monkeypatch.setitem(WAYS, "priced", (200, json.dumps(named).encode()))
    service.does(["priced", "well"])
    rater = service.rater(input_price=None, output_price=None, concurrency=1)
    rater.rate_all(different(2), 20)
    assert rater.counters()["cost"] == 0.25
    assert rater.counters()["input_tokens"] == 600.0


def test_the_version_changes_with_all_that_changes_an_answer(service, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Judge how polite the reply is, from 0 (rude) to 10 (polite).")
    changes = [
        {},
        {"model": "another"},
        {"served": "judge-2026"},
        {"rubric": "semantic"},
        {"rubric": "semantic", "listens": False},
        {"rubric": str(own), "lowest": 0, "highest": 10},
        {"facts": ["answer"]},
        {"sounds": str(tmp_path)},
        {"temperature": 0.5},
        {"extra": {"seed": 1}},
        {"form": "none"},
        {"max_tokens": 99},
        {"version": "2"},
    ]
    versions = [service.rater(**change).version for change in changes]
    assert len(set(versions)) == len(changes)
    assert versions[0] == service.rater(timeout=3, concurrency=2, name="other").version
    assert versions[0].startswith("judge-holistic-")
    before = service.rater(rubric=str(own)).version
    own.write_text("Judge how polite the reply is, from 0 (very rude) to 10 (polite).")
    assert service.rater(rubric=str(own)).version != before


def test_a_scale_of_ones_own(service, tmp_path, monkeypatch):
    own = tmp_path / "own.txt"
    own.write_text("Judge how polite the reply is, from 0 (rude) to 10 (polite).")
    monkeypatch.setitem(WAYS, "ten", (200, WAYS["well"][1].replace(str(GOOD["score"]).encode(), b"10")))
    service.does(["ten"])
    rater = service.rater(rubric=str(own), lowest=0, highest=10, form="none", extra={"seed": 7}, temperature=None)
    assert rater.rate(spoken()) == 10.0
    [asked] = service.asked
    assert "from 0 to 10" in asked["messages"][0]["content"]
    assert asked["seed"] == 7
    assert not {"response_format", "temperature"} & set(asked)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": ""}, "model: '' must be text"),
        ({"url": "judge.example"}, "url: expected an address"),
        ({"url": "https://me:pass@judge.example/v1"}, "url: holds a name or a password"),
        ({"api_key_env": "sk-pass@1"}, "api_key_env: expected the name of an environment variable"),
        ({"rubric": "kindness"}, "rubric: 'kindness' is neither semantic, acoustic, holistic nor a text file"),
        ({"listens": False}, "rubric: holistic asks for how a reply sounds"),
        ({"highest": 10}, "the scale of the rubric holistic is 1 to 5"),
        ({"sounds": "/no/such/folder"}, "sounds: '/no/such/folder' is not a folder"),
        ({"facts": "answer"}, "facts: 'answer' must be a list"),
        ({"form": "xml"}, "form: 'xml' is unknown; allowed: json_schema"),
        ({"max_tokens": 0}, "max_tokens: 0 must be a whole number"),
        ({"temperature": -1}, "temperature: -1 must be a number, at least 0"),
        ({"output_price": None}, "one alone gives no cost"),
        ({"extra": {"messages": []}}, "extra: must be a table of further fields, none of messages"),
        ({"extra": {"a": float("nan")}}, "extra: holds a value that JSON cannot represent"),
        ({"prompt": "x"}, "unknown argument 'prompt'; allowed: name, version"),
    ],
)
def test_impossible_arguments_are_refused(service, changes, complaint):
    arguments = {"name": "judge", "url": service.url, "model": "m", "input_price": 1, "output_price": 1} | changes
    with pytest.raises(InputError, match=complaint) as refused:
        ChatJudge.check(arguments)
    assert "pass@" not in str(refused.value)
    with pytest.raises(InputError, match="argument 'model' is missing"):
        ChatJudge.check({"name": "judge", "url": service.url})


def test_the_sound_is_the_same_as_that_of_the_plain_judge():
    """One encoder: WAV, 16 bits."""
    one = spoken()
    assert soundfile.info(io.BytesIO(encode_wav(one.waveform))).subtype == "PCM_16"
