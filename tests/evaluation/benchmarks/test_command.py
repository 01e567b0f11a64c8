"""`duet evaluate --replies`: scores existing replies, prints and writes results."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile

from common.errors import InputError
from duet.__main__ import execute
from evaluation.benchmarks.generation import draw_seed, prompt_ids
from evaluation.benchmarks.items import BenchmarkItem, ItemAudio, TaskKind
from playground.codec import PlaygroundCodec
from playground.data import WorldLayout
from playground.voices import ANSWERING, say
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.evaluation.benchmarks import made

EXTENDED = """
extends: {base}
reward:
  functions:
    - {{name: heard, target: 'playground.raters:Heard'}}
    - {{name: reader, target: 'tests.evaluation.benchmarks.made:Reader'}}
    - {{name: loudness, target: 'tests.evaluation.benchmarks.made:Loudness'}}
  weights: {{heard: 1.0}}
  composites: {{}}
"""


def evaluate(*arguments: object) -> Path:
    """Run `duet evaluate` in this process and return the JSON file that it wrote."""
    return execute(["evaluate", *map(str, arguments)])


@pytest.fixture
def config(root, tmp_path, monkeypatch) -> Path:
    """Write the playground configuration with raters of text and audio."""
    monkeypatch.chdir(root)
    path = tmp_path / "evaluating.yaml"
    path.write_text(EXTENDED.format(base=root / "configs" / "playground.yaml"))
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    folder = tmp_path / "oab"
    rows = [
        {"Questions": "three plus five", "Answer": "eight", "audio_filename": "a.wav"},
        {"Questions": "two plus seven", "Answer": "nine", "audio_filename": "b.wav"},
        {"Questions": "one plus one", "Answer": "two", "audio_filename": "c.wav"},
    ]
    made.openaudiobench(folder, "llama_questions", rows, None)
    made.openaudiobench(folder, "alpaca_eval", [{"instruction": "advise me", "audio_filename": "a.wav"}], None)
    return folder


def test_replies_are_scored_as_written_and_as_heard(config, questions, tmp_path, capsys):
    """Write two replies, one of them with other words in its audio. The third reply is missing."""
    for name, text in (("a", "oh eight it is"), ("b", "well seven it is")):
        waveform = say(text, ANSWERING, 170, 50)
        soundfile.write(tmp_path / f"{name}.wav", waveform.samples, waveform.rate)
    replies = made.replies(
        tmp_path / "replies.jsonl",
        [
            {"task": "llama_questions", "id": "a", "text": "oh eight it is", "audio": "a.wav"},
            {"task": "llama_questions", "id": "b", "text": "well nine it is", "audio": "b.wav"},
            {"task": "alpaca_eval", "id": "a", "text": "it is good"},
        ],
    )
    path = evaluate(
        "--suite", "openaudiobench", "--data", questions, "--replies", replies, "--config", config,
        "--out", tmp_path / "scores", "--judge", "reader",
    )  # fmt: skip
    assert path == tmp_path / "scores" / "evaluation" / "openaudiobench.json"
    found = json.loads(path.read_text())
    answers = found["tasks"]["llama_questions"]
    assert (answers["text"]["score"], answers["text"]["missing"]) == (100.0, {"no reply": 1})
    assert (answers["speech"]["score"], answers["speech"]["scored"]) == (50.0, 2)
    assert found["tasks"]["alpaca_eval"]["text"]["score"] == 100.0
    assert found["tasks"]["alpaca_eval"]["speech"]["missing"] == {"no speech in the reply": 1}
    assert found["IQ"]["text"] == 100.0
    assert (found["IQ"]["speech"], found["IQ"]["speech_tasks"]) == (50.0, ["llama_questions"])
    assert found["raters"] == {"heard": "playground-heard-2", "reader": "reader-1"}
    rows = pq.read_table(path.with_suffix(".parquet")).to_pylist()
    assert [(row["task"], row["id"], row["heard"]) for row in rows] == [
        ("alpaca_eval", "a", ""),
        ("llama_questions", "a", "oh eight it is"),
        ("llama_questions", "b", "well seven it is"),
        ("llama_questions", "c", None),
    ]
    shown = capsys.readouterr().out
    assert "1 × text: no reply" in shown
    assert "IQ" in shown


def test_styles_are_judged_by_their_sound(config, tmp_path):
    lines = [
        {"instruct_id": 1, "ability": "acoustic_attributes/volume", "instruct_text": "softly"},
        {"instruct_id": 2, "ability": "empathy/anger", "instruct_text": "they charged me twice"},
    ]
    made.vstyle(tmp_path / "vstyle" / "en", lines)
    for name, loudness in (("1", 0.1), ("2", 0.3)):
        soundfile.write(tmp_path / f"{name}.wav", made.tone(loudness=loudness), made.RATE)
    tasks = {"1": "acoustic_attributes", "2": "empathy"}
    rows = [{"task": tasks[n], "id": f"en-{n}", "text": "yes", "audio": f"{n}.wav"} for n in tasks]
    replies = made.replies(tmp_path / "replies.jsonl", rows)
    arguments = ["--suite", "vstyle", "--data", tmp_path / "vstyle", "--replies", replies, "--out", tmp_path]
    found = json.loads(evaluate(*arguments, "--config", config, "--judge", "loudness").read_text())
    assert {task: one["speech"]["score"] for task, one in found["tasks"].items()} == {
        "acoustic_attributes": 2.0,
        "empathy": 4.0,
    }
    # Weights: volume 0.125 / 6, anger 0.25 / 4.
    assert found["EQ"]["speech"] == pytest.approx((2.0 * 0.125 / 6 + 4.0 * 0.0625) / (0.125 / 6 + 0.0625))


def test_programs_need_neither_a_configuration_nor_a_model(questions, tmp_path):
    """Scores that need a judge or a recogniser are missing."""
    rows = [{"task": "llama_questions", "id": name, "text": "nine"} for name in ("a", "b", "c")]
    replies = made.replies(tmp_path / "replies.jsonl", rows)
    arguments = ["--suite", "openaudiobench", "--data", str(questions), "--replies", str(replies)]
    call = f"import duet.__main__ as m, sys; m.main({['evaluate', *arguments, '--out', str(tmp_path)]!r}); "
    call += "assert not {'vllm', 'deepspeed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", call], check=True, timeout=100)
    found = json.loads((tmp_path / "evaluation" / "openaudiobench.json").read_text())
    assert found["tasks"]["llama_questions"]["text"]["score"] == pytest.approx(100 / 3)
    assert found["tasks"]["llama_questions"]["speech"]["missing"] == {"no recogniser": 3}
    assert found["tasks"]["alpaca_eval"]["text"]["missing"] == {"no reply": 1}


def test_tasks_and_limit_choose_what_is_scored(questions, tmp_path):
    rows = [{"task": "llama_questions", "id": name, "text": "nine"} for name in ("a", "b")]
    replies = made.replies(tmp_path / "replies.jsonl", [*rows, {"task": "alpaca_eval", "id": "a", "text": "x"}])
    arguments = ["--suite", "openaudiobench", "--data", questions, "--replies", replies, "--out", tmp_path]
    found = json.loads(evaluate(*arguments, "--tasks", "llama_questions", "--limit", 1).read_text())
    assert {task: one["items"] for task, one in found["tasks"].items()} == {"llama_questions": 1}


REPLY = {"task": "llama_questions", "id": "a", "text": "eight"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([REPLY, REPLY], r"replies.jsonl line 2 answers 'llama_questions/a', as does .* line 1"),
        ([REPLY | {"id": "z"}], r"line 1 answers 'llama_questions/z', which is not an item"),
        ([REPLY, REPLY | {"id": 7}], r"line 2: field 'id' must be text, got 7"),
        ([REPLY | {"audio": "../away.wav"}], r"line 1: field 'audio': '../away.wav' cannot be read: .* not below"),
        ([REPLY | {"audio": "none.wav"}], r"line 1: field 'audio': 'none.wav' cannot be read"),
    ],
)
def test_replies_that_cannot_be_used_are_named(questions, tmp_path, rows, message):
    replies = made.replies(tmp_path / "replies.jsonl", rows)
    with pytest.raises(InputError, match=message):
        evaluate("--suite", "openaudiobench", "--data", questions, "--replies", replies, "--out", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out: without --run there is no directory"),
        (["--out", "x", "--run", "nowhere"], "nowhere is not the directory of a run"),
        (["--out", "x", "--judge", "nobody"], "there is no rater 'nobody'; reward.functions: answer, heard, manner"),
        (["--out", "x", "--limit", "-1"], "--limit: '-1' is not allowed; input should be greater than or equal to 0"),
        (
            ["--out", "x", "--temperature", "-1"],
            "--temperature: '-1' is not allowed; input should be",
        ),
        (["--out", "x", "--replies", "nowhere.jsonl"], "--replies: nowhere.jsonl does not exist"),
        (["--out", "x", "--replies", "r.jsonl", "--judge", "me"], "there is no rater 'me'; reward.functions: none; "),
        (["--out", "x", "--replies", "r.jsonl", "run.seed=3"], "'run.seed=3': replies from elsewhere have no config"),
    ],
)
def test_options_that_lead_nowhere_are_refused(root, monkeypatch, questions, arguments, message):
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=message):
        evaluate("--suite", "openaudiobench", "--data", questions, *arguments)


def test_a_run_without_a_checkpoint_is_refused(root, monkeypatch, questions, tmp_path):
    monkeypatch.chdir(root)
    (tmp_path / "config.yaml").write_text((root / "configs" / "playground.yaml").read_text())
    with pytest.raises(InputError, match="has no checkpoint"):
        evaluate("--suite", "openaudiobench", "--data", questions, "--run", tmp_path)


def test_a_question_becomes_the_prompt_that_the_model_was_trained_with(world):
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    codes = PlaygroundCodec.load(world / "codec").encode(say("three plus five", "en-us+f1", 170, 50))
    assert prompt_ids(PLAYGROUND, vocabulary, codes).tolist() == WorldLayout(vocabulary.tokenizer).prompt(codes)


def test_a_draw_depends_on_the_seed_and_the_item_alone():
    def item(name: str, sound: ItemAudio | None = None) -> BenchmarkItem:
        return BenchmarkItem(task="t", id=name, place="", kind=TaskKind.JUDGED, text="", sound=sound)

    seed = draw_seed(7, item("a"))
    assert 0 <= seed < 2**31
    assert draw_seed(7, item("a", ItemAudio(place=""))) == seed
    assert len({seed, draw_seed(8, item("a")), draw_seed(7, item("b"))}) == 3
