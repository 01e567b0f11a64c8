"""Datasets that Hugging Face `datasets` saved to disk become dialogues of our schema."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile

from data.dialogues import Dialogue, scan_dialogues
from duet.__main__ import main


def sound(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(int(16000 * seconds), dtype=np.float32), 16000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def convert(tmp_path, capsys):
    """`duet prepare --from-hf … --only-convert`, and the dialogues that come of it."""

    def call(dataset, *arguments: str) -> tuple[int, str, list[Dialogue]]:
        source = tmp_path / "saved"
        if dataset is not None:
            dataset.save_to_disk(str(source))
        code = main(["prepare", "--from-hf", str(source), "--to", str(tmp_path / "to"), "--only-convert", *arguments])
        said = capsys.readouterr()
        folder = tmp_path / "to/saved/dialogues"
        found = [row for _, row in scan_dialogues(folder)] if code == 0 else []
        return code, said.out + said.err, found

    return call


def questions(count: int) -> datasets.Dataset:
    """Sounds in the dataset itself, a class by its number."""
    columns = {
        "audio": [{"path": f"{n}.wav", "bytes": sound(0.1 + n / 100)} for n in range(count)],
        "question": [f"question {n}" for n in range(count)],
        "answer": ["seven"] * count,
        "mood": [n % 2 for n in range(count)],
    }
    plain = datasets.Dataset.from_dict(columns)
    return plain.cast_column("audio", datasets.Audio()).cast_column("mood", datasets.ClassLabel(names=["calm", "glad"]))


MAPPED = (
    "--column", "question_audio=audio", "--column", "question_text=question", "--column", "sft_target_text=answer",
    "--column", "facts.mood=mood",
)  # fmt: skip


def test_questions_with_sounds_become_dialogues(convert, tmp_path):
    code, said, found = convert(questions(300), *MAPPED)
    assert code == 0, said
    assert len(found) == 300
    one = found[7]
    [recording] = one.messages[0].said.recordings
    assert recording.is_relative_to(tmp_path / "to/saved/dialogues/audio")
    assert soundfile.info(recording).duration == pytest.approx(0.17)
    assert (one.question, one.target.text, one.facts) == ("question 7", "seven", {"mood": "glad"})
    assert len({row.id for row in found}) == 300


def test_what_was_converted_is_not_converted_again(convert, tmp_path):
    convert(questions(3), *MAPPED)
    before = (tmp_path / "to/saved/dialogues/part-000000.parquet").stat().st_mtime_ns
    assert "converted before" in convert(None, *MAPPED)[1]
    assert (tmp_path / "to/saved/dialogues/part-000000.parquet").stat().st_mtime_ns == before
    code, _, found = convert(None, *MAPPED[:-2])
    assert code == 0
    assert found[0].facts == {}


def test_dialogues_of_the_schema_itself_and_of_sharegpt(convert, tmp_path):
    (tmp_path / "saved").mkdir()
    rows = {
        "conversations": [
            [{"from": "human", "value": "<audio>"}, {"from": "gpt", "value": "six"}, {"from": "human", "value": "no"}]
        ],
        "audios": [["a.wav"]],
        "sft_target_text": ["seven"],
    }
    dataset = datasets.Dataset.from_dict(rows)
    dataset.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved/a.wav").write_bytes(sound(0.5))
    code, said, [one] = convert(None, "--column", "messages=conversations")
    assert code == 0, said
    assert [message.role for message in one.messages] == ["user", "assistant", "user"]
    assert soundfile.info(one.messages[0].said.recordings[0]).duration == pytest.approx(0.5)
    assert one.question == "no"


def test_a_dataset_of_several_splits(convert):
    both = datasets.DatasetDict({"train": questions(2), "test": questions(1)})
    code, said, _ = convert(both, *MAPPED)
    assert (code, "has the splits train, test; got none" in said) == (2, True)
    assert len(convert(None, *MAPPED, "--split", "test")[2]) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--column", "question_audio=sound"), "has no column 'sound'; it has audio, question"),
        (("--column", "speech=audio"), "'speech=audio' is not possible"),
        (("--column", "audio"), "'audio' is not possible"),
        ((), "has no column messages, question_audio or question_text"),
        (("--split", "test", *MAPPED), "has no splits"),
    ],
)
def test_arguments_that_do_not_fit(convert, arguments, complaint):
    code, said, _ = convert(questions(1), *arguments)
    assert code == 2
    assert complaint in said


def test_folders_that_are_none(convert, tmp_path):
    (tmp_path / "saved").mkdir()
    assert "is no dataset that was saved to disk" in convert(None)[1]
    (tmp_path / "to/saved/dialogues").mkdir(parents=True)
    (tmp_path / "saved").rmdir()
    code, said, _ = convert(questions(1), *MAPPED)
    assert (code, "`duet prepare` did not make it" in said) == (2, True)


def test_recordings_outside_the_dataset_are_not_read(convert, tmp_path):
    (tmp_path / "secret.wav").write_bytes(sound(0.1))
    dataset = datasets.Dataset.from_dict({"question_audio": ["../secret.wav"], "question_text": ["?"]})
    code, said, _ = convert(dataset)
    assert code == 2
    assert "row 1 names a recording that cannot be read" in said
    assert json.loads(json.dumps(said))
    assert convert(None, "--audio-root", str(tmp_path))[0] == 2, "its name climbs"
