"""The prompts that people listen to: answered before, between and after, always with the same draws."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs.load import load_config
from controller.validation import Validator
from observability.reply_schema import ReplyProvenance
from observability.run_directory import RunDirectory, numbered, read_listening
from reward.scoring import ScoringConfig, score_groups
from speech.types import Demonstration, Prompt
from tests.conftest import ROOT
from tests.controller.examples import card, group


class Answering:
    """Fake loop that answers every prompt and records the requests."""

    routes = ()
    reward = SimpleNamespace(
        decode=lambda replies: [None] * len(replies), measure=lambda function, replies: [0.5] * len(replies)
    )

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[str]]] = []

    def evaluate(self, prompts, number):
        self.asked.append((number, [prompt.id for prompt in prompts]))
        groups = [group(1, prompt.id) for prompt in prompts]
        scoring = ScoringConfig(total={"answer": 1.0})
        return groups, [score_groups(one, [card(answer=5.0)], scoring, [])[0] for one in groups]


def prompt(name: str) -> Prompt:
    return Prompt(id=name, token_ids=np.arange(3, dtype=np.int32), text="", facts={})


@pytest.fixture
def listening(tmp_path):
    """Evaluations of a run of `iterations`, listening every so often, with few recordings."""

    def make(**evaluation) -> tuple[Validator, Answering]:
        config = load_config(ROOT / "configs/playground.yaml", [])
        config.train.num_steps = 9
        config.reward.audio_quality_fn = ""
        for name, value in evaluation.items():
            setattr(config.validation, name, value)
        ids = np.arange(3, dtype=np.int32)
        inputs = SimpleNamespace(
            prompts=[prompt("t1"), prompt("t2"), prompt("t3"), prompt("t4")],
            demonstrations=[Demonstration(prompt_id=p, prompt_ids=ids, reply_ids=ids, text="") for p in ("t4", "t2")],
            held_out={"other": [prompt("o1")], "held_out": [prompt("h1"), prompt("h2"), prompt("h3")]},
        )
        loop = Answering()
        records = RunDirectory.create(tmp_path / "run", "run: {}\n")
        return Validator(config, inputs, records, loop, lambda: ReplyProvenance(raters={}, sampling={})), loop

    return make


def test_held_out_prompts_and_demonstrated_ones_are_answered_between(listening, tmp_path):
    held_out, loop = listening(recording_interval=3, num_recordings=2)
    held_out.evaluate("before", 0)
    for iteration in range(1, 10):
        held_out.record_listening(iteration)
    held_out.evaluate("after", 9)
    assert numbered(tmp_path / "run", "listening") == [0, 3, 6, 9]
    # After the last iteration the whole set is evaluated: only the demonstrated prompts are left to ask.
    assert read_listening(tmp_path / "run", 0)["prompt_id"].to_pylist() == ["t2", "t4"]
    assert read_listening(tmp_path / "run", 3)["prompt_id"].to_pylist() == ["h1", "h2", "t2", "t4"]
    assert read_listening(tmp_path / "run", 9)["prompt_id"].to_pylist() == ["t2", "t4"]
    # The place of a set decides the draws of the sampler: the same at every stage.
    assert {number for number, ids in loop.asked if ids == ["t2", "t4"]} == {2}
    assert {number for number, ids in loop.asked if ids[0] == "h1"} == {1}


def test_nobody_listens_where_that_is_switched_off(listening, tmp_path):
    held_out, loop = listening(recording_interval=0)
    held_out.evaluate("before", 0)
    held_out.record_listening(3)
    assert numbered(tmp_path / "run", "listening") == []
    assert [number for number, _ in loop.asked] == [0, 1]


def test_what_is_done_again_is_listened_to_again(listening, tmp_path):
    held_out, _ = listening(recording_interval=3, num_recordings=1)
    for iteration in (3, 6):
        held_out.record_listening(iteration)
    records = RunDirectory.open(tmp_path / "run")
    records.rewind(0)
    assert numbered(tmp_path / "run", "listening") == []
