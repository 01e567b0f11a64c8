"""Dialogues of the released schema: read as streams from JSON lines and Parquet, refused by row and field."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from data.dialogues import DIALOGUES, DialogueTurn, Message, scan_dialogues, scan_slice
from data.slices import as_text, file_slices, from_text
from speech.audio import Waveform

RELEASED = {
    "messages": [
        {"role": "system", "content": "You can speak and listen."},
        {"role": "user", "content": "Answer in a word.\n\n<|audio|>"},
    ],
    "audios": ["audio/question.wav"],
    "sft_target_text": "Seven.",
    "sft_target_audio": "audio/answer.wav",
    "rejected_text": "Eight.",
    "rejected_audio": "audio/bad.wav",
    "task_type": "s2s",
    "question_text": "What is two plus five?",
    "source_dataset": "of no concern",
}
"""With the fields of examples/sample_rl_sft.jsonl and sample_dpo.jsonl of the release."""


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


def lines(folder, *rows, name="talks.jsonl"):
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def one(folder, **changes):
    """The only dialogue of a file. Raises its refusal."""
    [(_, found)] = scan_dialogues(lines(folder, RELEASED | changes))
    if isinstance(found, InputError):
        raise found
    return found


def test_a_released_row(tmp_path):
    found = one(tmp_path)
    assert found.id == "talks-00000001"
    assert found.messages == (
        Message(role="system", said=DialogueTurn(text="You can speak and listen.")),
        Message(
            role="user", said=DialogueTurn(text="Answer in a word.", recordings=(tmp_path / "audio/question.wav",))
        ),
    )
    assert found.target == DialogueTurn(text="Seven.", recordings=(tmp_path / "audio/answer.wav",))
    assert found.rejected == DialogueTurn(text="Eight.", recordings=(tmp_path / "audio/bad.wav",))
    assert (found.question, found.facts) == ("What is two plus five?", {"task_type": "s2s"})
    assert [path.name for path in found.recordings] == ["question.wav", "answer.wav", "bad.wav"]


def test_turns_take_their_recordings_in_order(tmp_path):
    messages = [
        {"role": "system", "content": "Be kind."}, user("<audio>"), assistant("It is <|audio|> seven."),
        user("And <audio> this? <|audio|>"),
    ]  # fmt: skip
    found = one(tmp_path, messages=messages, audios=[f"{n}.wav" for n in range(4)], question_text=None)
    said = [[path.name for path in message.said.recordings] for message in found.messages]
    assert said == [[], ["0.wav"], ["1.wav"], ["2.wav", "3.wav"]]
    assert [message.said.text for message in found.messages] == ["Be kind.", None, "It is seven.", "And this?"]
    assert found.question == "And this?"
    assert found.facts["history"] == "assistant: It is seven."


def test_a_reply_at_the_end_is_the_target_unless_one_is_given(tmp_path):
    messages = [user("<audio>"), assistant("Six. <audio>")]
    given = one(tmp_path, messages=messages, audios=["q.wav", "a.wav"])
    assert (given.target.text, len(given.messages)) == ("Seven.", 1)
    without = {"sft_target_text": None, "sft_target_audio": "", "rejected_text": " ", "rejected_audio": None}
    found = one(tmp_path, messages=messages, audios=["q.wav", "a.wav"], **without)
    assert found.target == DialogueTurn(text="Six.", recordings=(tmp_path / "a.wav",))
    assert found.rejected is None
    assert one(tmp_path, messages=messages[:1], audios=["q.wav"], **without).target is None


def test_ids_and_facts_of_our_own(tmp_path):
    found = one(tmp_path, id="mine", facts={"answer": "seven"}, chosen_score=4, rejected_score=1.5)
    assert (found.id, found.facts) == ("mine", {"task_type": "s2s", "answer": "seven"})
    assert (found.chosen_score, found.rejected_score) == (4.0, 1.5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(messages=None), "field 'messages' is missing"),
        (dict(messages=[]), r"field 'messages' is \[\]"),
        (dict(messages="hello"), "field 'messages' is 'hello'"),
        (dict(messages=["hello"]), "message 1 of field 'messages' has the role missing"),
        (dict(messages=[{"role": "judge", "content": "x"}]), "has the role 'judge'; allowed: system, user, assistant"),
        (dict(messages=[{"role": "user", "content": [1]}]), r"message 1 .* has the content \[1\]; expected text"),
        (dict(messages=[user(" ")]), "message 1 of field 'messages' is empty"),
        (dict(messages=[assistant("<audio>")]), "has no message of the user that a reply could answer"),
        (dict(audios=[]), "names 0 recordings, and 'messages' have 1 placeholders"),
        (dict(audios=["a.wav", "b.wav"]), "names 2 recordings, and 'messages' have 1"),
        (dict(audios="a.wav"), "field 'audios' is 'a.wav'; expected a list"),
        (dict(audios=[None]), "field 'audios' holds missing"),
        (dict(audios=["../a.wav"]), "field 'audios': .*which is not below"),
        (dict(audios=["/etc/passwd"]), "field 'audios': .*which is not below"),
        (dict(audios=["a\0"]), "field 'audios': .*is not the name of a file"),
        (dict(sft_target_text=7), "field 'sft_target_text' is 7; expected text"),
        (dict(sft_target_text=None, sft_target_audio=None), "no reply that is better"),
        (dict(id="\x1b"), "field 'id' is "),
        (dict(id="x" * 201), "field 'id' is "),
        (dict(facts=[1]), r"field 'facts' is \[1\]"),
        (dict(facts={"a": 1}), "field 'facts' is {'a': 1}"),
        (dict(chosen_score="good"), "field 'chosen_score' is 'good', which is no score"),
        (dict(rejected_score=float("nan")), "field 'rejected_score' is nan, which is no score"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, changes, complaint):
    with pytest.raises(InputError, match=rf"talks\.jsonl line 1: .*{complaint}"):
        one(tmp_path, **changes)


def test_a_bad_line_does_not_end_the_stream(tmp_path):
    path = lines(tmp_path, RELEASED, "{", "[]", "", RELEASED | {"id": 5}, RELEASED)
    with path.open("ab") as file:
        file.write(b'{"messages": "\xff"}\n')
    found = list(scan_dialogues(path))
    places = [place.removeprefix(f"{path} ") for place, _ in found]
    assert places == ["line 1", "line 2", "line 3", "line 5", "line 6", "line 7"]
    refused = {place.removeprefix(f"{path} "): str(row) for place, row in found if isinstance(row, InputError)}
    assert sorted(refused) == ["line 2", "line 3", "line 5", "line 7"]
    assert "is not JSON" in refused["line 2"]
    assert "is not a JSON object" in refused["line 3"]
    assert "UTF-8" in refused["line 7"]
    assert [row.id for _, row in found if not isinstance(row, InputError)] == ["talks-00000001", "talks-00000006"]


@pytest.fixture
def both(tmp_path):
    """The same 50 rows as lines and as Parquet."""
    rows = [RELEASED | {"id": f"row {n}", "facts": {"n": str(n)}, "question_text": "?" * n or None} for n in range(50)]
    path = lines(tmp_path, *rows)
    columns = {f.name: [row.get(f.name) for row in rows] for f in DIALOGUES}
    columns["facts"] = [list(row["facts"].items()) for row in rows]
    table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in DIALOGUES})
    pq.write_table(table, tmp_path / "talks.parquet", row_group_size=7)
    return path, tmp_path / "talks.parquet"


def test_parquet_says_the_same_as_lines(both):
    one, other = ([found for _, found in scan_dialogues(path)] for path in both)
    assert len(one) == 50
    assert one == other
    (place, _), *_ = scan_dialogues(both[1])
    assert place.endswith("talks.parquet row 1")


@pytest.mark.parametrize("rows", [1, 7, 8, 50, 51])
def test_slices_hold_every_row_once_and_know_its_number(both, rows):
    for path in both:
        pieces = file_slices(path, rows)
        assert all(from_text(as_text(piece)) == piece for piece in pieces)
        found = [pair for piece in pieces for pair in scan_slice(piece)]
        assert found == list(scan_dialogues(path))
        assert len(pieces) == (-(-50 // rows) if path.suffix == ".jsonl" else -(-50 // (-(-rows // 7) * 7)))


def test_a_folder_is_read_in_the_order_of_names(both, tmp_path):
    assert len(list(scan_dialogues(tmp_path))) == 100
    places = [place for place, _ in scan_dialogues(tmp_path)]
    assert "talks.jsonl line 1" in places[0]
    assert "talks.parquet row 1" in places[50]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.jsonl", None, "no source of dialogues"),
        ("words.txt", b"hello", "no source of dialogues"),
        ("empty.jsonl", b"", "has no rows"),
        ("not.parquet", b"hello", "is not a Parquet file"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        list(scan_dialogues(tmp_path / name))


def test_recordings_below_another_folder(tmp_path):
    Waveform(np.zeros(10, dtype=np.float32), 16000).write(tmp_path / "sounds/audio/question.wav")
    path = lines(tmp_path, RELEASED)
    [(_, found)] = scan_dialogues(path, tmp_path / "sounds")
    assert next(found.recordings).is_file()
