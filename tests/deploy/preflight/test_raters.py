"""Raters are built and asked about one example; a judge behind HTTP says in its own way what is wrong with it."""

import pytest

from configs.schema import RewardFunctionSection
from controller.checkpoint_checks import load_codec
from data.records import read_demonstrations, read_prompts
from deploy.preflight.finding import Severity
from deploy.preflight.raters import check_pace, check_rater_answers, check_raters, check_score, example_reply
from reward.types import MissingScore
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.deploy.preflight.cases import all_fine, configured, only
from tests.reward.judges import KEY, Process


@pytest.fixture(scope="module")
def config(root):
    return configured(root)


@pytest.fixture(scope="module")
def one(config, world):
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    prompts = read_prompts(world / "data/train.parquet", vocabulary)
    shown = read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[0]
    found = example_reply(prompts, shown, vocabulary, load_codec(config, vocabulary))
    assert found.own
    assert found.spoken.prompt.id == shown.prompt_id
    assert not example_reply(prompts[1:], shown, vocabulary, load_codec(config, vocabulary)).own
    return found


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    process = Process(tmp_path_factory.mktemp("judge"), "--key-env", "JUDGE_KEY")
    yield process
    process.end()


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def asking(judge: Process, **changes) -> RewardFunctionSection:
    arguments = judge.arguments(retries=0, **changes)
    return RewardFunctionSection(name="judge", target="reward.remote.http_judge:HttpJudge", kwargs=arguments)


def test_the_worlds_raters_are_fine(config, one):
    found = all_fine(check_raters(config, one))
    assert [finding.text.split(":")[0] for finding in found] == [rater.name for rater in config.reward.functions]


def test_a_judge_that_answers(config, one, judge):
    judge.fail()
    (finding,) = all_fine(check_rater_answers(config, asking(judge), one))
    assert finding.text.startswith("judge: playground-answer-1 gives ")
    assert ", saying " in finding.text


@pytest.mark.parametrize(
    ("fault", "changes", "said", "remedy"),
    [
        ({"error": 1.0}, {}, "server error (HTTP 500)", "the judge's own log"),
        ({"busy": 1.0}, {}, "rate limited", "`concurrency`"),
        ({"refused": 1.0}, {}, "refused (HTTP 400)", "`api_key_env`"),
        ({"garbage": 1.0}, {}, "not understood", "docs/own-judge.md"),
        ({"hangup": 1.0}, {}, "connection failed", "`url`"),
        ({"slow": 1.0}, {"timeout": 0.5}, "timeout", "raise `timeout`"),
        ({}, {"version": "another"}, "other version", "`version`"),
        ({}, {"lowest": 10.0, "highest": 20.0}, "out of range", "`lowest` and `highest`"),
        ({}, {"url": "http://127.0.0.1:9/rate"}, "connection failed (ConnectError)", "`url`"),
    ],
)
def test_a_judge_that_gives_no_score(config, one, judge, fault, changes, said, remedy):
    judge.fail(**fault)
    found = only(check_rater_answers(config, asking(judge, **changes), one), Severity.ERROR)
    assert said in found.text
    assert remedy in found.remedy
    assert KEY not in str(found)


def test_a_key_that_is_wrong_or_not_there(config, one, judge, monkeypatch):
    judge.fail()
    monkeypatch.setenv("JUDGE_KEY", "another-key-for-the-judge")
    assert "refused (HTTP 401)" in only(check_rater_answers(config, asking(judge), one), Severity.ERROR).text
    monkeypatch.delenv("JUDGE_KEY")
    found = only(check_rater_answers(config, asking(judge), one), Severity.ERROR)
    assert "the variable JUDGE_KEY is not set" in found.text


class Mute:
    name, version = "mute", "mute-1"

    def rate(self, spoken):
        return MissingScore("no voiced sound")


class Broken:
    name, version = "broken", "broken-1"

    def rate(self, spoken):
        raise KeyError("answer")


class Unborn:
    name, version = "unborn", "unborn-1"

    def __init__(self):
        raise OSError("no weights; password=hunter2hunter2")

    def rate(self, spoken):
        return 1.0


def own(kind: type) -> RewardFunctionSection:
    return RewardFunctionSection(name=kind.name, target=f"{__name__}:{kind.__name__}")


def test_raters_of_the_users_own(config, one):
    found = only(check_rater_answers(config, own(Mute), one), Severity.WARNING)
    assert "no score for the demonstration of train-00000" in found.text
    assert found.text.endswith("no voiced sound")
    found = only(check_rater_answers(config, own(Broken), one), Severity.ERROR)
    assert "broken raised KeyError ('answer')" in found.text
    found = only(check_rater_answers(config, own(Unborn), one), Severity.ERROR)
    assert "cannot be built: OSError was raised" in found.text
    assert "hunter2" not in str(found)
    found = only(check_rater_answers(config, RewardFunctionSection(name="x", target="nowhere:At"), one), Severity.ERROR)
    assert "'nowhere:At' cannot be loaded" in found.text


def test_a_score_off_the_scale_of_lambda(config):
    assert not list(check_score(config, "answer", 5.0))
    assert not list(check_score(config, "format", 87.0))  # counts in no total
    found = only(check_score(config, "answer", 87.0), Severity.WARNING)
    assert "answer: 87 is outside reward.score_min = 1 to reward.score_max = 5" in found.text
    assert "mix_ratio.gate_threshold" in found.remedy


def test_a_judge_that_is_too_slow_for_an_iteration(root):
    config = configured(root, "reward.score_timeout_s=100")
    # 64 replies, two servers of four each: eight rounds, and eighty seconds for them
    assert not list(check_pace(config, "judge", 9.9, 4))
    found = only(check_pace(config, "judge", 10.1, 4), Severity.WARNING)
    assert "64 replies an iteration, 8 at a time, take 81 s" in found.text
    assert "the deadline is 80 s" in found.text
