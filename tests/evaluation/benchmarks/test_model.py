"""`duet evaluate --run` as a whole: the real engine asks a run's newest checkpoint a small made-up suite by ear."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from controller.mix_ratio import MixRatioState
from evaluation.benchmarks.generation import prompt_ids
from playground import task
from playground.codec import PlaygroundCodec
from playground.voices import CALLERS, say
from speech.audio import Waveform
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.commands import duet
from tests.evaluation.benchmarks import made

QUESTIONS = [("three plus five", 140, 20), ("nine minus two", 210, 78), ("bigger six or nine", 130, 78),
             ("two plus one", 205, 22), ("four plus eight", 170, 50)]  # fmt: skip
"""What is asked, at how many words a minute and at what pitch."""
OPERATIONS = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b}


def answer(question: str) -> str:
    words = question.split()
    first, *_, last = [task.NUMBERS.index(word) for word in words if word in task.NUMBERS]
    return task.NUMBERS[max(first, last) if words[0] == "bigger" else OPERATIONS[words[1]](first, last)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """Five spoken questions, two of them asked again for a judge, and one that is too long for the model, in the layout
    of OpenAudioBench."""
    folder = tmp_path_factory.mktemp("suite")
    sounds, rows = {}, []
    for number, (question, rate, pitch) in enumerate(QUESTIONS):
        sounds[f"q_{number}.wav"] = say(question, CALLERS[0], rate, pitch).at_rate(made.RATE).samples
        rows.append({"Questions": question, "Answer": answer(question), "audio_filename": f"q_{number}.wav"})
    rows[-1]["Answer"] = "thirteen"  # a key that is wrong, so that not all are right
    long = {"Questions": "on and on", "Answer": "one", "audio_filename": "long.wav"}
    made.openaudiobench(folder, "llama_questions", [*rows, long], sounds | {"long.wav": made.tone(seconds=10.0)})
    names = {"Questions": "Prompt", "Answer": "参考答案"}
    judged = [{names.get(name, name): value for name, value in row.items()} for row in (rows[0], rows[-1])]
    made.openaudiobench(folder, "reasoning_qa", judged, sounds)
    return folder


@pytest.fixture(scope="module")
def trained(root, world, tmp_path_factory) -> Path:
    """A run of the playground with a checkpoint that says "oh" for "well" and the other way round."""
    directory = tmp_path_factory.mktemp("runs") / "small"
    directory.mkdir()
    (directory / "config.yaml").write_text((root / "configs" / "playground.yaml").read_text())
    checkpoint = directory / "checkpoints" / "000003"
    shutil.copytree(world / "base", checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    vocabulary = Vocabulary.from_checkpoint(checkpoint, PLAYGROUND.tokens)
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    rows = [vocabulary.tokenizer.token_to_id(word) for word in task.OPENERS.values()]
    weights[head][rows] = weights[head][rows[::-1]].clone()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    state = {"iteration": 3, "weight_version": 3, "prompts": 0, "demonstrations": 0, "data": {}}
    (checkpoint / "controller.json").write_text(json.dumps(state | {"mix": asdict(MixRatioState())}))
    return directory


def likeliest(checkpoint: Path, folder: Path, world: Path) -> list[str]:
    """What plain transformers has the model say to each question."""
    vocabulary = Vocabulary.from_checkpoint(checkpoint, PLAYGROUND.tokens)
    codec = PlaygroundCodec.load(world / "codec")
    model = Qwen2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, use_safetensors=True).eval()
    said = []
    for number in range(len(QUESTIONS)):
        path = folder / "eval_datas" / "llama_questions" / "audios" / f"q_{number}.wav"
        ids = prompt_ids(PLAYGROUND, vocabulary, codec.encode(Waveform.read(path)))
        tokens = torch.from_numpy(ids[None].astype(np.int64))
        drawn = model.generate(  # type: ignore[misc]
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=96,
            eos_token_id=vocabulary.end_reply,
            pad_token_id=vocabulary.pad,
        )
        said.append(vocabulary.text(drawn[0, len(ids) :].numpy()))
    return said


@pytest.mark.e2e
def test_the_newest_checkpoint_of_a_run_is_asked_by_ear(root, world, suite, trained):
    arguments = ["--run", str(trained), "--suite", "openaudiobench", "--data", str(suite)]
    done = duet(root, "evaluate", *arguments, "--temperature", "0", "--judge", "answer", "reward.num_servers=1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((trained / "evaluation" / "openaudiobench.json").read_text())
    rows = pq.read_table(trained / "evaluation" / "openaudiobench.parquet").to_pylist()
    *answers, long = [row for row in rows if row["task"] == "llama_questions"]
    judged = [row for row in rows if row["task"] == "reasoning_qa"]

    expected = likeliest(trained / "checkpoints" / "000003", suite, world)
    assert [row["text"] for row in answers] == expected
    assert expected != likeliest(world / "base", suite, world)  # it is the checkpoint that was asked
    assert {row["finish"] for row in (*answers, *judged)} == {"stop"}
    assert all(row["seconds"] > 0.5 for row in (*answers, *judged))

    # A word of the reference in the text, and in what the recogniser heard.
    for channel, words in (("text", "text"), ("speech", "heard")):
        right = [float(row["references"] in row[words].split()) for row in answers]
        assert [row[f"{channel}_score"] for row in answers] == right
        column = found["tasks"]["llama_questions"][channel]
        assert column["score"] == pytest.approx(100 * np.mean(right))
        assert column["missing"] == {"question too long for the model": 1}
        assert (long["text"], long[f"{channel}_score"]) == (None, None)
        # The judge wants the form of a reply as well, 5 for right and 1 for wrong.
        marks = [5.0 if task.said_answer(row[words]) == row["references"] else 1.0 for row in judged]
        assert [row[f"{channel}_score"] for row in judged] == marks
        assert found["tasks"]["reasoning_qa"][channel]["score"] == pytest.approx(20 * np.mean(marks))
        assert 0 < np.mean(right) < 1 < np.mean(marks) < 5
        assert found["IQ"][channel] == pytest.approx((100 * np.mean(right) + 20 * np.mean(marks)) / 2)
    assert found["iteration"] == 3
    assert found["sampling"] == {"temperature": 0.0, "max_tokens": 96}
    assert set(found["raters"]) == {"answer", "heard", "codec"}
    assert "8 of 8 items scored" in done.stdout
    assert "llama_questions" in done.stdout
