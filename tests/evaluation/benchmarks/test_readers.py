"""Suite readers on the published layouts, and their errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from evaluation.benchmarks import openaudiobench, voicebench, vstyle
from evaluation.benchmarks.items import TaskFilter, TaskKind
from tests.evaluation.benchmarks import made


def read(suite, folder: Path, *tasks: str, limit: int = 0, sounds: bool = True):
    chosen = TaskFilter(tasks=tasks, limit=limit)
    return list(chosen.of(suite.read(folder, chosen, sounds=sounds)))


@pytest.fixture
def voices(tmp_path) -> Path:
    """Write every scored task of VoiceBench."""
    folder = tmp_path / "voicebench"
    for task in ("alpacaeval", "alpacaeval_full", "commoneval", "wildvoice", "advbench"):
        made.voicebench(folder, task, "test", [{"prompt": f"{task} asks"}])
    for region in ("usa", "ind_n"):
        made.voicebench(folder, "sd-qa", region, [{"prompt": "who", "reference": "Ada Lovelace"}])
    made.voicebench(
        folder, "mmsu", "law", [{"prompt": "which", "reference": "B"}, {"prompt": "what", "reference": "D"}]
    )
    made.voicebench(folder, "openbookqa", "test", [{"prompt": "which", "reference": "A"}])
    made.voicebench(
        folder,
        "bbh",
        "test",
        [
            {"prompt": "is it", "reference": "No", "id": "sports_understanding_17"},
            {"prompt": "which", "reference": "(B)", "id": "hyperbaton-3"},
        ],
    )
    few = ("length_constraints:number_words", {"num_words": 9, "relation": "less than"})
    made.ifeval(folder, [("Say it in few words without commas", [few, ("punctuation:no_comma", {})])])
    return folder


def test_voicebench_has_a_folder_a_task_and_a_file_a_split(voices):
    items = read(voicebench, voices)
    by_task = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    assert list(by_task) == list(voicebench.TASKS)
    assert {task: by_task[task][0].kind for task in by_task} == voicebench.TASKS
    assert [(item.id, item.part) for item in by_task["sd-qa"]] == [("ind_n-00001", "ind_n"), ("usa-00001", "usa")]
    assert by_task["sd-qa"][0].references == ("Ada Lovelace",)
    assert [(i.id, i.part, i.references) for i in by_task["mmsu"]] == [
        ("law-00001", "law", ("B",)),
        ("law-00002", "law", ("D",)),
    ]
    assert [(i.choices, i.references, i.part) for i in by_task["bbh"]] == [
        (("yes", "no"), ("no",), "sports_understanding"),
        (("A", "B"), ("B",), "hyperbaton"),
    ]
    few, no_comma = by_task["ifeval"][0].instructions
    assert (few.id, dict(few.arguments)) == (
        "length_constraints:number_words",
        {"num_words": 9, "relation": "less than"},
    )
    assert dict(no_comma.arguments) == {}


def test_recordings_are_decoded_when_they_are_wanted(voices):
    [item] = read(voicebench, voices, "openbookqa")
    waveform = item.sound.load()
    assert waveform.rate == made.RATE
    np.testing.assert_allclose(waveform.samples, made.tone(200.0), atol=1e-6)
    assert [item.sound for item in read(voicebench, voices, "openbookqa", sounds=False)] == [None]


def test_shards_of_a_split_are_counted_on(voices):
    folder = voices / "commoneval"
    first = folder / "test-00000-of-00001.parquet"
    first.rename(folder / "test-00000-of-00002.parquet")
    made.voicebench(voices, "commoneval", "test", [{"prompt": "and more"}])
    first.rename(folder / "test-00001-of-00002.parquet")
    assert [(i.id, i.text) for i in read(voicebench, voices, "commoneval")] == [
        ("test-00001", "commoneval asks"),
        ("test-00002", "and more"),
    ]


def test_tasks_and_numbers_of_items_can_be_chosen(voices):
    assert [item.name for item in read(voicebench, voices, "mmsu", "bbh", limit=1)] == [
        "mmsu/law-00001",
        "bbh/test-00001",
    ]


def test_openaudiobench_has_a_table_and_recordings_a_task(tmp_path):
    folder = tmp_path / "oab"
    sounds = {"q_0.wav": made.tone(300.0)}
    rows = {
        "alpaca_eval": {"instruction": "advise me", "output": "…"},
        "llama_questions": {"Questions": "what is the capital", "Answer": "Paris"},
        "reasoning_qa": {"Prompt": "count them", "参考答案": "seven"},
        "trivia_qa": {
            "question": "who wrote it",
            "answer_normalized_value": "mark twain",
            "answer_normalized_aliases": "samuel clemens, mark twain",
        },
        "web_questions": {"question": "who coached", "answers": "George Seifert;Dom Capers"},
    }
    for task, row in rows.items():
        made.openaudiobench(folder, task, [row | {"audio_filename": "q_0.wav"}], sounds)
    items = read(openaudiobench, folder)
    assert [(i.task, i.kind, i.id, i.text, i.references) for i in items] == [
        ("alpaca_eval", TaskKind.JUDGED, "q_0", "advise me", ()),
        ("llama_questions", TaskKind.ANSWER, "q_0", "what is the capital", ("Paris",)),
        ("reasoning_qa", TaskKind.JUDGED, "q_0", "count them", ("seven",)),
        ("trivia_qa", TaskKind.ANSWER, "q_0", "who wrote it", ("mark twain", "samuel clemens")),
        ("web_questions", TaskKind.ANSWER, "q_0", "who coached", ("George Seifert", "Dom Capers")),
    ]
    np.testing.assert_allclose(items[0].sound.load().samples, sounds["q_0.wav"], atol=1e-4)
    assert [i.name for i in read(openaudiobench, folder / "eval_datas", "trivia_qa", sounds=False)] == ["trivia_qa/q_0"]


def test_answers_may_be_a_list_as_python_writes_it(tmp_path):
    rows = [{"question": "who", "answers": "['Jo; Ann', \"Al's\"]", "audio_filename": "a.wav"}]
    made.openaudiobench(tmp_path, "web_questions", rows, None)
    assert read(openaudiobench, tmp_path, sounds=False)[0].references == ("Jo; Ann", "Al's")


LINE = {"instruct_id": 7, "ability": "role_play/scenario", "instruct_text": "speak", "instruction_audio_path": "7.wav"}


def test_vstyle_has_a_folder_a_language(tmp_path):
    made.vstyle(tmp_path / "en", [LINE, LINE | {"instruct_id": 8, "ability": "acoustic_properties/age"}])
    made.vstyle(tmp_path / "zh", [LINE | {"ability": "empathy/anger", "instruct_text": "说"}])
    items = read(vstyle, tmp_path)
    assert [(i.language, i.task, i.id, i.part) for i in items] == [
        ("en", "role_play", "en-7", "role_play/scenario"),
        ("en", "acoustic_attributes", "en-8", "acoustic_attributes/age"),
        ("zh", "empathy", "zh-7", "empathy/anger"),
    ]
    assert {item.kind for item in items} == {TaskKind.STYLE}
    assert items[0].sound.load().rate == made.RATE
    assert [i.id for i in read(vstyle, tmp_path / "zh", sounds=False)] == ["zh-7"]
    assert [i.id for i in read(vstyle, tmp_path, "empathy", sounds=False)] == ["zh-7"]


def test_weights_of_vstyle_are_those_of_its_evaluation():
    """Each task has a quarter. Composites take half of the acoustic task, six abilities the rest."""
    parts = tuple(f"{task}/{ability}" for task, abilities in vstyle.ABILITIES.items() for ability in abilities)
    weights = dict(zip(parts, vstyle.weights(parts), strict=True))
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["acoustic_attributes/composite_properties"] == 0.125
    assert weights["acoustic_attributes/age"] == pytest.approx(0.125 / 6)
    assert weights["instruction/style"] == pytest.approx(0.25 / 3)
    assert weights["role_play/character"] == 0.125
    assert weights["empathy/anger"] == 0.0625


def test_a_folder_of_something_else_is_refused(tmp_path):
    for suite in (voicebench, openaudiobench, vstyle):
        with pytest.raises(InputError, match=str(tmp_path)):
            read(suite, tmp_path)


def test_tasks_that_are_not_there_are_refused(voices):
    with pytest.raises(InputError, match="--tasks: 'mmlu' is not a task of this suite; tasks: alpacaeval, "):
        read(voicebench, voices, "mmlu")
    (voices / "mmsu" / "law-00000-of-00001.parquet").rename(voices / "law.parquet")
    with pytest.raises(InputError, match="mmsu has no Parquet file"):
        read(voicebench, voices, "mmsu")


PROMPT = {"prompt": "which", "reference": "B"}


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            "mmsu",
            [PROMPT, PROMPT | {"reference": "E"}],
            r"test-00000-of-00001.parquet row 2: field 'reference' is 'E'; allowed",
        ),
        ("mmsu", [{"prompt": "which"}], r"parquet has no column 'reference'"),
        ("mmsu", [PROMPT, {"prompt": None, "reference": "A"}], r"parquet row 2: field 'prompt' is missing"),
        (
            "bbh",
            [PROMPT | {"reference": "perhaps", "id": "navigate_1"}],
            r"row 1: .* 'perhaps'; allowed: yes, no, \(A\), \(B\)",
        ),
        (
            "mmsu",
            [PROMPT | {"audio": {"bytes": None, "path": "../../secret.wav"}}],
            r"row 1: field 'audio': .* not below",
        ),
        (
            "mmsu",
            [PROMPT | {"audio": {"bytes": None, "path": None}}],
            r"row 1: field 'audio' must have 'bytes' or 'path'",
        ),
    ],
)
def test_rows_of_voicebench_that_cannot_be_used_are_named(tmp_path, task, rows, message):
    made.voicebench(tmp_path, task, "test", rows)
    with pytest.raises(InputError, match=message):
        read(voicebench, tmp_path, task)


def test_instructions_with_unusable_arguments_are_named(tmp_path):
    wrong = ("length_constraints:number_words", {"num_words": 9, "relation": "about"})
    made.ifeval(tmp_path, [("a", [("punctuation:no_comma", {})]), ("b", [wrong])])
    with pytest.raises(InputError, match=r"parquet row 2: 'relation' of instruction .* is 'about'; allowed: less than"):
        read(voicebench, tmp_path)


def test_a_recording_that_is_none_is_named(tmp_path):
    made.voicebench(tmp_path, "advbench", "test", [{"prompt": "x", "audio": {"bytes": b"no sound", "path": None}}])
    [item] = read(voicebench, tmp_path)
    with pytest.raises(InputError, match=r"parquet row 1: the question's audio cannot be read"):
        item.sound.load()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"Questions": "what", "audio_filename": "a.wav"}, r"csv has no column 'Answer'; expected Questions, audio_"),
        ({"Questions": "what", "Answer": " ", "audio_filename": "a.wav"}, r"csv row 1: field 'Answer' is missing"),
        (
            {"Questions": "what", "Answer": "x", "audio_filename": "b.wav"},
            r"row 1: field 'audio_filename' names .*b.wav, which",
        ),
        (
            {"Questions": "what", "Answer": "x", "audio_filename": "../../a.wav"},
            r"row 1: field 'audio_filename': .* not below",
        ),
    ],
)
def test_rows_of_openaudiobench_that_cannot_be_used_are_named(tmp_path, row, message):
    made.openaudiobench(tmp_path, "llama_questions", [row], {"a.wav": made.tone()})
    with pytest.raises(InputError, match=message):
        read(openaudiobench, tmp_path)


def test_two_items_of_one_name_are_refused(tmp_path):
    row = {"Questions": "what", "Answer": "x", "audio_filename": "a.wav"}
    made.openaudiobench(tmp_path, "llama_questions", [row, row], {"a.wav": made.tone()})
    with pytest.raises(InputError, match=r"row 2: the id 'llama_questions/a' is already used at .* row 1; ids must be"):
        read(openaudiobench, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ability": "singing/opera"}, r"metadata.jsonl line 1: field 'ability' is 'singing/opera'; known: acoustic"),
        ({"instruct_text": None}, r"line 1: field 'instruct_text' must be text, got None"),
        ({"instruct_id": None}, r"line 1: field 'instruct_id' must be a number or a string, got None"),
        ({"instruction_audio_path": None}, r"line 1 has no recording; set one of the fields instruction_audio_path, "),
    ],
)
def test_lines_of_vstyle_that_cannot_be_used_are_named(tmp_path, change, message):
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "metadata.jsonl").write_text(json.dumps(LINE | change) + "\n")
    with pytest.raises(InputError, match=message):
        read(vstyle, tmp_path)


def test_a_recording_of_vstyle_that_is_not_there_is_named(tmp_path):
    path = made.vstyle(tmp_path / "en", [LINE])
    (path.parent / "wav" / "7.wav").unlink()
    with pytest.raises(InputError, match=r"line 1: field 'instruction_audio_path' names '7.wav', which exists neither"):
        read(vstyle, tmp_path)
