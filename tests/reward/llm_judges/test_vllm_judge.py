"""A judge from a checkpoint on vLLM's real server, with random weights.

Its scores are arbitrary. They must be in range, equal twice, and under a version that names the weights.
"""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import InputError
from reward.llm_judges.parsing import fingerprint
from reward.llm_judges.prompts import judge_messages
from reward.llm_judges.vllm_judge import VllmJudge
from reward.types import MissingScore
from speech.audio import Waveform
from tests.reward.llm_judges.tiny_judges import write_listener, write_reader
from tests.reward.spoken import spoken

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("local judge")]
WORDS = ("oh eight it is", "oh nine it is", "", "well then eight it is", 'he said "stop"')
pytestmark = pytest.mark.timeout(1500)
USUAL = {"name": "judge", "rubric": "semantic", "listens": False, "dtype": "float32", "sure": 0.0, "max_length": 4096}
USUAL["start_seconds"] = 400  # both processes of the server import vLLM, slowly on a busy machine


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return write_reader(tmp_path_factory.mktemp("judges") / "reader")


def rater(checkpoint, **changes) -> VllmJudge:
    return VllmJudge(**USUAL | {"checkpoint": str(checkpoint)} | changes)


def replies() -> list:
    return [spoken(words) for words in WORDS]


@pytest.mark.e2e
def test_the_expected_score_is_that_of_the_model_itself(reader):
    """transformers, on the prompt that the chat template makes, gives the digits the same probabilities."""
    judge = rater(reader)
    rated = judge.rate_all(replies(), 100)
    words, model = AutoTokenizer.from_pretrained(reader), AutoModelForCausalLM.from_pretrained(reader).eval()
    digits = words.convert_tokens_to_ids(list("12345"))
    for reply, one in zip(replies(), rated, strict=True):
        asked = judge_messages(judge.settings, judge.settings.instructions(reason_first=False), reply)
        prompt = words.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) + '{"score": '
        with torch.no_grad():
            logps = model(**words(prompt, return_tensors="pt")).logits[0, -1].log_softmax(-1)
        shares = logps[digits].exp().numpy()
        assert one.score == pytest.approx(float((shares @ np.arange(1, 6)) / shares.sum()), abs=1e-5)
        assert one.details["judge_reason"].startswith("1: ")
        assert one.details["judge_reason"].endswith(f"(together {shares.sum():.2g})")
    assert judge.counters()["output_tokens"] == len(WORDS)
    assert judge.counters()["input_tokens"] > 500 * len(WORDS)
    assert len({one.score for one in rated}) == len(WORDS)


@pytest.mark.e2e
def test_it_says_the_same_twice_under_a_version_that_names_its_weights(reader):
    first, second = rater(reader), rater(reader)
    scores = [one.score for one in first.rate_all(replies(), 100)]
    assert all(1.0 <= score <= 5.0 for score in scores)
    assert [one.score for one in second.rate_all(replies(), 100)] == pytest.approx(scores, abs=1e-5)
    assert second.counters()["calls"] == len(WORDS)
    assert first.version == second.version
    name, engine, asked = first.version.split("/")
    assert name == "reader"
    assert engine.startswith(fingerprint(reader))
    assert asked.startswith("semantic-")
    assert rater(reader, pinned=engine).version == first.version
    with pytest.raises(InputError, match=f"pinned: the judge .* is version '{engine}', not 'another'"):
        rater(reader, pinned="another")
    assert rater(reader, facts=["answer"]).version.split("/")[:2] == [name, engine]
    assert rater(reader, facts=["answer"]).version != first.version


@pytest.mark.e2e
def test_it_writes_a_verdict_that_is_read_strictly(reader):
    judge = rater(reader, score="answer", longest_reason=40, max_tokens=400)
    rated = judge.rate_all(replies(), 100)
    assert {one.score for one in rated} <= set(np.arange(1, 5.5, 0.5).tolist()), rated
    assert all(len(one.details.get("judge_reason", "")) <= 40 for one in rated)
    cut = rater(reader, score="answer", longest_reason=40, max_tokens=5, retries=0).rate_all(replies()[:2], 100)
    assert {one.score for one in cut} == {MissingScore("not understood", fault="rater")}
    assert "cut off" in cut[0].details["judge_error"]


@pytest.mark.e2e
def test_a_model_that_was_not_about_to_give_a_score_gives_none(reader):
    rated = rater(reader, sure=0.9).rate_all(replies()[:1], 100)
    assert rated[0].score == MissingScore("not understood", fault="rater")
    assert "below sure: 0.9" in rated[0].details["judge_error"]


@pytest.mark.e2e
def test_what_cannot_be_put_to_it_costs_the_others_nothing(reader):
    rated = rater(reader).rate_all([*replies()[:2], spoken("oh " * 2000)], 100)
    assert [isinstance(one.score, float) for one in rated] == [True, True, False]
    assert rated[2].score == MissingScore("refused", fault="rater")
    assert "maximum context length" in rated[2].details["judge_error"]
    [strange] = rater(reader, opening="1").rate_all([spoken()], 100)
    assert not isinstance(strange.score, MissingScore)


@pytest.mark.e2e
def test_a_model_that_listens_hears_question_and_reply(tmp_path):
    listener = write_listener(tmp_path / "listener")
    for name, seed in (("a.wav", 1), ("b.wav", 2)):
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 8000)
        Waveform(noise.astype(np.float32), 16000).write(tmp_path / name)
    changes = {"rubric": "acoustic", "listens": True, "sounds": str(tmp_path)}
    judge, again = rater(listener, **changes), rater(listener, **changes)
    heard = [spoken(sound=0), spoken(sound=1), spoken(question_audio="a.wav"), spoken(question_audio="b.wav")]
    scores = [one.score for one in judge.rate_all(heard, 100)]
    assert len(set(scores)) == 4
    assert [one.score for one in again.rate_all(heard[::-1], 100)] == pytest.approx(scores[::-1], abs=1e-4)
    assert judge.rate(spoken(sound=None)) == MissingScore("no speech in the reply")


@pytest.mark.e2e
def test_a_model_that_only_reads_must_be_said_to(reader):
    with pytest.raises(InputError, match="takes no audio; listens: false lets it read"):
        rater(reader, rubric="acoustic", listens=True)


def test_another_seed_of_the_same_shape_is_another_judge(reader, tmp_path):
    """The index and the shapes are the same; only the weights differ."""
    other, same = write_reader(tmp_path / "reader", seed=1), write_reader(tmp_path / "again")
    assert fingerprint(other) != fingerprint(reader) == fingerprint(same)
    (same / "README.md").write_text("notes")
    assert fingerprint(same) == fingerprint(reader)
    (same / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint(same) != fingerprint(reader)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"checkpoint": "/no/such"}, "checkpoint: '/no/such' is not a folder"),
        ({"checkpoint": "/tmp"}, "checkpoint: /tmp holds no"),
        ({"rubric": "acoustic"}, "rubric: acoustic asks for how a reply sounds"),
        ({"score": "guess"}, "score: 'guess'; allowed: expected, answer"),
        ({"sure": 1.5}, "sure: 1.5 must be a number, at least 0, at most 1"),
        ({"max_length": 1}, "max_length: 1 must be a whole number, at least 2"),
        ({"gpus": -1}, "gpus: -1 must be a number, at least 0"),
        ({"start_seconds": math.inf}, "start_seconds: inf must be above 0"),
        ({"model": "x"}, "unknown argument 'model'; allowed: name, version"),
    ],
)
def test_impossible_arguments_are_refused(reader, changes, complaint):
    with pytest.raises(InputError, match=complaint):
        VllmJudge.check(USUAL | {"checkpoint": str(reader)} | changes)
    with pytest.raises(InputError, match="argument 'listens' is missing"):
        VllmJudge.check({"name": "judge", "checkpoint": str(reader)})


def test_a_scale_that_is_no_digits_needs_an_answer(reader, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("From 0 to 100: how polite is the reply?")
    changes = USUAL | {"checkpoint": str(reader), "rubric": str(own), "lowest": 0, "highest": 100}
    with pytest.raises(InputError, match="are not digits, which score: expected needs"):
        VllmJudge.check(changes)
    VllmJudge.check(changes | {"score": "answer"})
