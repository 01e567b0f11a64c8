"""The shipped world: its files agree with each other, and nothing held out is in its training data."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2ForCausalLM

from data.records import read_demonstrations, read_prompts
from playground import data, evaluate, task
from playground.codec import PlaygroundCodec
from speech.families import PLAYGROUND
from speech.grammar import check_reply_grammar, token_kinds
from speech.types import Prompt
from speech.vocabulary import Vocabulary

SPLITS = ("train", "held_out", "held_out_facts")


@pytest.fixture(scope="module")
def prompts(world: Path, vocabulary: Vocabulary) -> dict[str, list[Prompt]]:
    return {name: read_prompts(world / "data" / f"{name}.parquet", vocabulary) for name in SPLITS}


@pytest.fixture(scope="module")
def report(world: Path) -> dict:
    return json.loads((world / "build.json").read_text())


def _rendering(prompt: Prompt) -> tuple[str, ...]:
    return (prompt.text, *(prompt.facts[name] for name in ("caller", "manner", "rate", "pitch")))


def test_sizes(world: Path, prompts: dict[str, list[Prompt]]):
    assert len(prompts["train"]) >= 2048
    assert len(prompts["held_out"]) >= 400
    assert len(prompts["held_out_facts"]) >= 100
    assert sum(file.stat().st_size for file in world.rglob("*") if file.is_file()) < 15e6


def test_nothing_held_out_is_trained_on(prompts: dict[str, list[Prompt]], report: dict):
    trained = {_rendering(prompt) for prompt in prompts["train"]}
    trained_pairs = {(p.text, p.facts["caller"], p.facts["manner"]) for p in prompts["train"]}
    recipe = report["recipe"]
    sizes = {name: recipe[name] for name in ("base", "train", "held_out", "held_out_facts")}
    for rendering in task.make_splits(report["seed"], **sizes).base:
        facts = task.prompt_facts(rendering)
        trained.add((rendering.fact.text, *(facts[name] for name in ("caller", "manner", "rate", "pitch"))))
        trained_pairs.add((rendering.fact.text, facts["caller"], facts["manner"]))
    texts = {row[0] for row in trained}
    held, unknown = prompts["held_out"], prompts["held_out_facts"]
    assert not trained & {_rendering(prompt) for prompt in held}
    assert not trained_pairs & {(p.text, p.facts["caller"], p.facts["manner"]) for p in held}
    assert {prompt.text for prompt in held} <= texts
    assert not texts & {prompt.text for prompt in unknown}


def test_the_shipped_prompts_are_the_planned_ones(prompts: dict[str, list[Prompt]], report: dict):
    sizes = {name: report["recipe"][name] for name in ("base", "train", "held_out", "held_out_facts")}
    splits = task.make_splits(report["seed"], **sizes)
    for name in SPLITS:
        assert [prompt.facts for prompt in prompts[name]] == [task.prompt_facts(r) for r in getattr(splits, name)]


def test_prompts_are_shuffled(prompts: dict[str, list[Prompt]]):
    assert len({prompt.text for prompt in prompts["train"][:64]}) > 40
    assert len({prompt.facts["operation"] for prompt in prompts["train"][:16]}) == len(task.OPERATIONS)


def test_the_facts_of_a_prompt_are_true(prompts: dict[str, list[Prompt]]):
    for prompt in (*prompts["train"], *prompts["held_out"], *prompts["held_out_facts"]):
        fact = task.Fact(prompt.facts["operation"], int(prompt.facts["left"]), int(prompt.facts["right"]))
        assert (prompt.text, prompt.facts["answer"]) == (fact.text, fact.answer)


def test_a_demonstration_for_every_prompt_keeps_to_the_pattern(
    world: Path, vocabulary: Vocabulary, prompts: dict[str, list[Prompt]]
):
    demonstrations = read_demonstrations(world / "data" / "demonstrations.parquet", vocabulary)
    assert [one.prompt_id for one in demonstrations] == [prompt.id for prompt in prompts["train"]]
    kinds = token_kinds(vocabulary)
    for one, prompt in zip(demonstrations, prompts["train"], strict=True):
        assert check_reply_grammar(one.reply_ids, PLAYGROUND.interleave, kinds) is None
        assert np.array_equal(one.prompt_ids, prompt.token_ids)
        assert vocabulary.text(one.reply_ids) == one.text
        assert task.said_answer(one.text) is not None


def test_demonstrations_are_of_mixed_quality(world: Path, prompts: dict[str, list[Prompt]]):
    rows = pq.read_table(world / "data" / "demonstrations.parquet").to_pylist()
    answers = [task.said_answer(row["text"]) for row in rows]
    right = np.mean([said == prompt.facts["answer"] for said, prompt in zip(answers, prompts["train"], strict=True)])
    manner = np.mean([row["manner"] == p.facts["manner"] for row, p in zip(rows, prompts["train"], strict=True)])
    assert right == pytest.approx(task.ANSWER_RIGHT, abs=0.03)
    assert manner == pytest.approx(task.AXIS_RIGHT**2, abs=0.03)


def test_tokenizer_names(world: Path, vocabulary: Vocabulary, codec: PlaygroundCodec):
    fast = Tokenizer.from_file(str(world / "base" / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(world / "base")
    assert auto.get_vocab() == fast.get_vocab()
    assert [fast.id_to_token(index) for index in range(len(data.SPECIAL))] == list(data.SPECIAL)
    assert vocabulary.codebook == codec.codebook
    assert vocabulary.speech_first + codec.codebook == vocabulary.size == len(auto)
    line = "oh seven it is <|begin_of_audio|> <|audio_3|> <|end_of_audio|> <|im_end|>"
    ids = fast.encode(line).ids
    assert auto(line)["input_ids"] == ids
    assert [fast.id_to_token(index) for index in ids] == line.split()
    assert (auto.pad_token, auto.eos_token) == (data.PAD, data.END)


def test_the_base_answers_in_the_pattern(world: Path, vocabulary: Vocabulary, prompts: dict[str, list[Prompt]]):
    torch.set_num_threads(1)
    model = Qwen2ForCausalLM.from_pretrained(world / "base").eval()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    replies = evaluate.sample(
        model, [prompt.token_ids.tolist() for prompt in prompts["held_out"][:48]], vocabulary, seed=0
    )
    kinds = token_kinds(vocabulary)
    formed = [check_reply_grammar(np.asarray(reply), PLAYGROUND.interleave, kinds) is None for reply in replies]
    said = [task.said_answer(vocabulary.text(np.asarray(reply))) for reply in replies]
    assert np.mean(formed) > 0.9
    assert np.mean([answer is not None for answer in said]) > 0.9


def test_the_base_has_head_room(report: dict):
    measured = report["measured"]["held_out"]
    assert measured["answer_accuracy"] < 0.5
    assert measured["top_accuracy"] > measured["answer_accuracy"] + 0.15
    assert measured["heard_accuracy"] > 0.8
    assert 2.8 < measured["manner"] < 3.8
