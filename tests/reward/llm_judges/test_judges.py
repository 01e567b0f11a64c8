"""Judges in the configuration: invalid arguments are refused before anything starts."""

import pytest
import yaml

from common.errors import InputError
from configs.load import load_config
from controller.inputs import read_inputs

JUDGE = "{name: judge, target: 'reward.remote.http_judge:HttpJudge', kwargs: {%s}}"


def configured(root, world, arguments: str):
    overrides = [
        f"reward.functions=[{{name: answer, target: 'playground.raters:Answer'}}, {JUDGE % arguments}]",
        "reward.weights={answer: 1, judge: 1}",
        "reward.composites={}",
        f"model.path={world / 'base'}",
    ]
    return load_config(root / "configs" / "playground.yaml", overrides)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("name: judge, version: '1'", "argument 'url' is missing"),
        ("name: judge, version: '1', url: 'judge.example'", "url: expected an address such as"),
        ("name: judge, version: '1', url: 'http://127.0.0.1:9/', timeout: 0", "timeout: 0 must be above 0"),
        ("name: judge, version: '1', url: 'http://127.0.0.1:9/', tries: 3", "unknown argument 'tries'; allowed: "),
    ],
)
def test_a_judge_with_impossible_arguments_is_refused(root, world, arguments, complaint):
    with pytest.raises(InputError, match=f"reward.functions.judge.kwargs: {complaint}"):
        read_inputs(configured(root, world, arguments))


@pytest.mark.parametrize(
    ("use", "arguments", "complaint"),
    [
        ("reward.llm_judges.openai_chat:ChatJudge", "url: 'http://127.0.0.1:9/v1'", "argument 'model' is missing"),
        (
            "reward.llm_judges.openai_chat:ChatJudge",
            "url: 'http://127.0.0.1:9', model: m, rubric: x",
            "rubric: 'x' is neither",
        ),
        (
            "reward.llm_judges.vllm_judge:VllmJudge",
            "checkpoint: /no/such, listens: true",
            "checkpoint: '/no/such' is not a folder",
        ),
        ("reward.acoustic_raters.raters:Tempo", "low: 3, high: 2", "low: 3.* must not be above high"),
    ],
)
def test_so_are_judges_that_are_models_and_raters_that_measure(root, world, use, arguments, complaint):
    config = configured(root, world, "version: '1', name: judge, url: 'http://127.0.0.1:9/'")
    config.reward.functions[1].target = use
    given = yaml.safe_load(f"{{name: judge, {arguments}}}")
    config.reward.functions[1].kwargs = given
    with pytest.raises(InputError, match=f"reward.functions.judge.kwargs: {complaint}"):
        read_inputs(config)


def test_a_key_need_not_be_where_the_run_is_started_from(root, world, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    arguments = "name: judge, version: '1', url: 'http://127.0.0.1:9/', api_key_env: NO_SUCH_KEY"
    assert read_inputs(configured(root, world, arguments)).prompts
