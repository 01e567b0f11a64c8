"""What an engine asks vLLM for and what it makes of the answers, with a stand-in for vLLM."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from rollout import vllm_engine as engine_module
from rollout.vllm_engine import RolloutRequest, SamplingConfig, VllmEngine
from speech.families import PLAYGROUND
from speech.types import Finish, Prompt
from speech.vocabulary import Vocabulary
from tests.rollout.examples import engine_settings

SHAPES = {
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "bad_words", "allowed_token_ids", "min_tokens",
}  # fmt: skip
"""Arguments of vLLM's SamplingParams that change the distribution, but for which it draws from the softmax."""


class StandIn:
    """Keeps what it was asked for and answers with the completions that it was given."""

    def __init__(self, **settings) -> None:
        self.settings = settings
        self.llm_engine = self
        self.engine_core = SimpleNamespace()  # in this process
        self.parameters: list[SimpleNamespace] = []
        self.completions: list[tuple[list[int], str | None]] = []
        self.versions: list[tuple[str, int, int]] = []
        self.requests: list[str] = []

    def add_request(self, name, prompt, parameters) -> None:
        self.parameters.append(parameters)
        self.requests.append(name)

    def step(self):
        spans = [SimpleNamespace(version=version, start=start, end=end) for version, start, end in self.versions]
        found = [
            SimpleNamespace(
                token_ids=ids,
                finish_reason=reason,
                logprobs=[{token: SimpleNamespace(logprob=-0.5)} for token in ids],
                weight_versions=spans,
            )
            for ids, reason in self.completions
        ]
        finished = [
            SimpleNamespace(request_id=name, finished=True, outputs=[completion])
            for name, completion in zip(self.requests, found, strict=True)
        ]
        self.requests = []
        return finished

    def _nothing(self, *arguments, **named) -> None:
        pass

    init_weight_transfer_engine = start_weight_update = update_weights = _nothing
    finish_weight_update = update_weight_version = _nothing


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture
def started(monkeypatch, world, vocabulary):
    """Starts an engine on the stand-in. Returns both."""

    def module(name: str, **contents) -> None:
        made = ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", LLM=StandIn, SamplingParams=SimpleNamespace)
    module("vllm.inputs", tokens_input=lambda ids, cache_salt: (ids, cache_salt))
    module("vllm.sampling_params", RequestOutputKind=SimpleNamespace(FINAL_ONLY="whole"))
    module("weight_sync.vllm_receiver", BACKEND="stand-in")
    module("rollout.constrained_decoding", CONFIG_KEY="key", StructureProcessor="the structure")
    monkeypatch.setattr(engine_module, "_set_environment", lambda settings: None)

    def start(*, constrained: bool = True) -> tuple[VllmEngine, StandIn]:
        settings = engine_settings(world, max_num_seqs=4, constrained=constrained)
        engine = VllmEngine(settings, PLAYGROUND, vocabulary, seed=0)
        return engine, engine._llm

    return start


def sampled(engine: VllmEngine, llm: StandIn, *completions, temperature: float = 0.8):
    """Replies to one prompt, drawn with seed 7."""
    llm.completions = list(completions)
    prompt = Prompt(id="p", token_ids=np.array([1, 2], dtype=np.int32), text="", facts={})
    settings = SamplingConfig(temperature=temperature, max_tokens=96)
    [group] = engine.generate([prompt], len(completions), settings, [7], "rollout-0")
    return group.replies


def test_nothing_but_temperature_and_structure_shapes_what_is_drawn(started):
    """Method §7, rule 3: no top-p, top-k or penalty; and the log-probabilities of just that distribution come back."""
    for constrained, processors in ((True, ["the structure"]), (False, None)):
        engine, llm = started(constrained=constrained)
        sampled(engine, llm, ([9], "length"))
        assert {name: value for name, value in vars(llm.parameters[0]).items() if name in SHAPES} == {
            "temperature": 0.8
        }
        assert llm.settings["logprobs_mode"] == "processed_logprobs"
        assert llm.settings["logits_processors"] == processors


def test_replies_that_do_not_end_well_are_marked(started, vocabulary):
    """Method §7, rule 5: cut off, given up, without its boundaries, or with an id that belongs in no reply."""
    engine, llm = started()
    text, code, end = 9, vocabulary.speech_first, vocabulary.end_reply
    begin, close = vocabulary.begin_speech, vocabulary.end_speech
    whole = [text, text, begin, *[code] * 3, close, end]
    replies = sampled(
        engine,
        llm,
        (whole, "stop"),
        (whole[:-2], "length"),
        (whole[:4], "abort"),
        (whole[:4], None),
        ([text, text, begin, *[code] * 3, end], "stop"),
        ([text, text, begin, code, vocabulary.pad, close, end], "stop"),
    )
    assert [reply.finish for reply in replies] == [
        Finish.STOP, Finish.LENGTH, Finish.ABORTED, Finish.ABORTED, Finish.STOP, Finish.STOP,
    ]  # fmt: skip
    assert replies[0].defect is None
    assert all("no end" in reply.defect for reply in replies[1:4])
    assert "token 6" in replies[4].defect
    assert "token 4 (id 0) is a token outside every channel" in replies[5].defect
    assert replies[5].channels[4] == -1


def test_a_reply_knows_the_weights_and_the_draw_that_made_it(started, tmp_path):
    """Method §7, rule 9."""
    engine, llm = started()
    [before] = sampled(engine, llm, ([9], "length"))
    engine.load_weights([tmp_path / "w.safetensors"], 5)
    first, second = sampled(engine, llm, ([9], "length"), ([10], "length"))
    assert (before.weight_version, first.weight_version, second.weight_version) == (0, 5, 5)
    assert [(r.prompt_id, r.index, r.worker, r.seed) for r in (first, second)] == [
        ("p", 0, "rollout-0", 7),
        ("p", 1, "rollout-0", 7),
    ]
    assert [parameters.seed for parameters in llm.parameters] == [7, 7, 8]


def test_a_reply_that_weights_came_into_knows_the_oldest_and_the_newest(started):
    engine, llm = started()
    llm.versions = [("3", 0, 2), ("4", 2, 3)]
    [reply] = sampled(engine, llm, ([9, 9, 10], "length"))
    assert (reply.weight_version, reply.newest_version) == (3, 4)


def test_what_is_abandoned_does_not_come_back(started):
    engine, llm = started()
    prompt = Prompt(id="p", token_ids=np.array([1, 2], dtype=np.int32), text="", facts={})
    settings = SamplingConfig(temperature=1.0, max_tokens=9)
    engine.submit([RolloutRequest(number=1, prompt=prompt, group_size=1, sampling=settings, seed=0)])
    llm.abort_request = lambda names, internal: llm.requests.clear()
    engine.abort_all()
    engine.submit([RolloutRequest(number=2, prompt=prompt, group_size=1, sampling=settings, seed=0)])
    llm.completions = [([9], "length")]
    assert [number for number, _ in engine.run_for(1.0, "w")] == [2]


def test_the_reply_ends_at_the_tokenizers_own_token(started, vocabulary):
    """Method §7, rule 6."""
    engine, llm = started()
    moved = Vocabulary(**{**vars(vocabulary), "end_reply": 33})
    engine._vocabulary = moved
    sampled(engine, llm, ([9], "length"))
    assert llm.parameters[0].stop_token_ids == [33]
