"""Preparation without Ray: what becomes of a row, what is refused and counted, and what is not done twice."""

import json
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from data.manifest import read_manifest
from data.open_dataset import open_demonstrations, open_pairs, open_prompts
from data.parquet import UNFINISHED
from data.prepare import source as preparation
from data.prepare.encode import encode
from data.prepare.ray_job import EncodingConfig, _within
from duet import prepare as command
from duet.__main__ import main
from speech.families import PLAYGROUND
from speech.grammar import check_reply_grammar, token_kinds
from tests.conftest import ROOT
from tests.data.prepare.talks import Talks

CONFIG = ROOT / "configs/playground.yaml"


@pytest.fixture(scope="module")
def recorded(world, tmp_path_factory) -> Talks:
    return Talks(world, tmp_path_factory.mktemp("recorded"), 4)


@pytest.fixture
def talks(recorded, tmp_path) -> Talks:
    """Recordings of this test's own."""
    shutil.copytree(recorded.folder, tmp_path / "src")
    own = object.__new__(Talks)
    vars(own).update(vars(recorded) | {"folder": tmp_path / "src"})
    return own


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """`duet prepare` in this process, and which slices it encoded."""
    monkeypatch.chdir(ROOT)
    done: list[int] = []

    def in_process(recipe: EncodingConfig, pieces, pool, told):
        encoder = recipe.encoder()
        outcomes = []
        for number, piece in enumerate(pieces):
            outcomes.append(encode(encoder, piece, recipe.root, recipe.folder, number))
            done.append(number)
            told(number + 1)
        return outcomes

    monkeypatch.setattr(preparation, "encode_all", in_process)
    monkeypatch.setattr(command, "joiner", lambda *_: lambda: None)

    def call(*arguments: str) -> tuple[int, str, int]:
        """Exit code, what was said, and how many slices were encoded."""
        done.clear()
        code = main(["prepare", *map(str, arguments), "--config", str(CONFIG), "--to", str(tmp_path / "to")])
        said = capsys.readouterr()
        return code, said.out + said.err, len(done)

    return call


def opened(talks, folder):
    return open_prompts([folder / "prompts"], talks.vocabulary), open_demonstrations(
        [folder / "demonstrations"], talks.vocabulary
    )


def test_a_row_is_spelt_as_the_world_spells_its_own(talks, prepare, tmp_path):
    source = talks.write("talks.jsonl", [talks.row(n) for n in range(4)])
    code, said, _ = prepare(source, "--rows", "3")
    assert code == 0, said
    assert "4 rows: 4 prompts, 4 demonstrations" in said
    prompts, demonstrations = opened(talks, tmp_path / "to/talks")
    for number, (prompt, shown) in enumerate(zip(prompts, demonstrations, strict=True)):
        heard = talks.codes(f"audio/question{number}.wav")
        assert prompt.token_ids.tolist() == talks.layout.prompt(heard)
        reply = talks.layout.reply(talks.shown[number].text, talks.codes(f"audio/answer{number}.wav"))
        assert shown.reply_ids.tolist() == reply
        assert check_reply_grammar(shown.reply_ids, PLAYGROUND.interleave, token_kinds(talks.vocabulary)) is None
        assert (shown.prompt_id, shown.prompt_ids.tolist()) == (prompt.id, prompt.token_ids.tolist())
        assert prompt.facts == {"task_type": "s2s", "answer": "seven", "manner": "high-fast"}
    files = sorted((tmp_path / "to/talks/prompts").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [3, 1]


def test_a_dialogue_of_several_turns(talks, prepare, tmp_path):
    messages = [
        {"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": f"{talks.shown[0].text} <|audio|>"},
        {"role": "user", "content": "<|audio|>"},
    ]  # fmt: skip
    audios = ["audio/question0.wav", "audio/answer0.wav", "audio/question1.wav"]
    row = talks.row(1, messages=messages, audios=audios)
    assert prepare(talks.write("talks.jsonl", [row]), "--set", "model.max_model_len=400")[0] == 0
    [prompt] = opened(talks, tmp_path / "to/talks")[0]
    start = talks.layout.id("<|im_start|>")
    reply = talks.layout.reply(talks.shown[0].text, talks.codes("audio/answer0.wav"))
    first, second = (talks.layout.prompt(talks.codes(f"audio/question{n}.wav")) for n in (0, 1))
    assert first[-1] == start
    assert prompt.token_ids.tolist() == [*first, *reply, *second]
    assert prompt.facts["history"] == f"assistant: {talks.shown[0].text}"


def test_pairs_of_a_target_and_a_worse_reply(talks, prepare, tmp_path):
    worse = {"rejected_text": talks.shown[1].text, "rejected_audio": "audio/answer1.wav", "chosen_score": 4.0}
    source = talks.write("talks.jsonl", [talks.row(0, **worse), talks.row(1), talks.row(2, sft_target_audio=None)])
    code, said, _ = prepare(source, "--most-refused", "0.5")
    assert code == 0
    assert "2 prompts, 2 demonstrations, 1 pairs; refused: reply not spelt 1" in said
    [pair] = open_pairs([tmp_path / "to/talks/pairs"], talks.vocabulary)
    assert talks.vocabulary.text(pair.chosen_ids) == talks.shown[0].text
    assert talks.vocabulary.text(pair.rejected_ids) == talks.shown[1].text
    assert (pair.chosen_score, pair.rejected_score) == (4.0, None)
    assert pair.origin == f"{source} line 1"


def test_rows_that_cannot_be_used_are_counted_by_reason(talks, prepare, tmp_path):
    (talks.folder / "audio/noise.wav").write_bytes(b"no sound")
    long = {"sft_target_text": talks.shown[0].text, "messages": [{"role": "user", "content": "<|audio|>" * 9}]}
    rows = [
        talks.row(0),
        talks.row(0, audios=["audio/none.wav"]),
        talks.row(0, audios=["audio/noise.wav"]),
        talks.row(0, sft_target_text="unheard words"),
        talks.row(0, messages=[]),
        talks.row(0, **long, audios=["audio/question0.wav"] * 9),
        talks.row(0, rejected_text=talks.shown[0].text, rejected_audio="audio/answer0.wav"),
        talks.row(
            0, messages=[{"role": "system", "content": "sesquipedalian"}, {"role": "user", "content": "<audio>"}]
        ),
    ]
    source = talks.write("talks.jsonl", rows)
    code, said, _ = prepare(source)
    assert code == 2
    assert "7 of 8 rows cannot be used" in said
    assert not (tmp_path / "to/talks/manifest.json").exists()
    with pytest.raises(InputError, match="interrupted before it was"):
        opened(talks, tmp_path / "to/talks")
    code, said, _ = prepare(source, "--most-refused", "0.9")
    assert code == 0, said
    refused = [json.loads(line) for line in (tmp_path / "to/talks/refused.jsonl").read_text().splitlines()]
    reasons = [
        "recording missing", "recording unreadable", "reply not spelt", "row malformed", "prompt too long",
        "pair of one reply", "prompt not spelt",
    ]  # fmt: skip
    assert [(one["place"], one["reason"]) for one in refused] == [
        (f"{source} line {number}", reason) for number, reason in enumerate(reasons, start=2)
    ]
    assert "does not know 'unheard'" in refused[2]["message"]
    manifest = read_manifest(tmp_path / "to/talks")
    assert (manifest.rows, manifest.refused) == (8, dict.fromkeys(reasons, 1))


def test_the_same_is_not_done_twice_and_what_has_changed_is_done_again(talks, prepare, tmp_path):
    source = talks.write("talks.jsonl", [talks.row(n) for n in range(3)])
    assert prepare(source, "--rows", "2")[2] == 2
    first = (tmp_path / "to/talks/manifest.json").read_bytes()
    code, said, encoded = prepare(source, "--rows", "2")
    assert (code, encoded) == (0, 0)
    assert "prepared before" in said
    assert "3 rows: 3 prompts" in said
    assert (tmp_path / "to/talks/manifest.json").read_bytes() == first

    def again(*arguments: str) -> int:
        return prepare(source, "--rows", "2", *arguments)[2]

    assert again("--set", "model.max_model_len=191") == 2, "room for fewer tokens"
    assert again() == 2
    shutil.copy(talks.folder / "audio/question1.wav", talks.folder / "audio/question0.wav")
    assert again("--trust-recordings") == 0
    assert again() == 2, "another recording of the same name"
    assert opened(talks, tmp_path / "to/talks")[0][0].token_ids.tolist() == talks.layout.prompt(
        talks.codes("audio/question1.wav")
    )
    talks.write("talks.jsonl", [talks.row(n) for n in range(4)])
    assert again() == 2, "another row"
    part = tmp_path / "to/talks/prompts/part-000001.parquet"
    part.unlink()
    assert again() == 2, "a file that is gone"
    assert part.exists()


def test_what_was_interrupted_is_refused_and_done_again(talks, prepare, tmp_path, monkeypatch):
    source = talks.write("talks.jsonl", [talks.row(n) for n in range(3)])
    assert prepare(source)[0] == 0
    talks.write("talks.jsonl", [talks.row(n) for n in range(4)])

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "encode_all", dies)
        assert prepare(source)[0] == 130
    assert (tmp_path / "to/talks" / UNFINISHED).exists()
    assert read_manifest(tmp_path / "to/talks") is None
    assert prepare(source)[2] == 1
    assert len(opened(talks, tmp_path / "to/talks")[0]) == 4
    assert not (tmp_path / "to/talks" / UNFINISHED).exists()


def test_a_name_twice_ends_it(talks, prepare, tmp_path):
    source = talks.write("talks.jsonl", [talks.row(n, id="one") for n in range(2)])
    code, said, _ = prepare(source)
    assert code == 2
    assert "part-000000.parquet row 2: field 'id' is 'one', as in " in said
    assert read_manifest(tmp_path / "to/talks") is None
    talks.write("talks.jsonl", [talks.row(n) for n in range(2)])
    assert prepare(source)[0] == 0


def test_prepared_data_are_trusted_as_far_as_their_manifest_goes(talks, prepare, tmp_path, world):
    assert prepare(talks.write("talks.jsonl", [talks.row(n) for n in range(4)]), "--rows", "2")[0] == 0
    folder = tmp_path / "to/talks"
    trusted, shown = opened(talks, folder)
    assert shown.families == {"playground"}
    manifest = read_manifest(folder)
    assert (manifest.folders["prompts"].mark, manifest.folders["prompts"].longest) == (
        trusted.marks[0],
        trusted.longest,
    )
    (folder / "manifest.json").rename(folder / "aside")
    examined, without = opened(talks, folder)
    assert (examined.marks, examined.longest) == (trusted.marks, trusted.longest)
    assert without.families == {None}
    (folder / "aside").rename(folder / "manifest.json")
    part = folder / "prompts/part-000000.parquet"
    pq.write_table(pq.read_table(part).slice(0, 1), part)
    with pytest.raises(InputError, match=r"part-000000\.parquet has 1 rows in .* prepare the data again"):
        opened(talks, folder)
    shutil.copy(world / "data/train.parquet", folder / "prompts/more.parquet")
    with pytest.raises(InputError, match=r"more\.parquet is not named in"):
        opened(talks, folder)


def test_prepared_data_are_of_one_tokenizer(talks, prepare, tmp_path, world):
    assert prepare(talks.write("talks.jsonl", [talks.row(0)]))[0] == 0
    shutil.copytree(world / "base", tmp_path / "base")
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 576}))
    other = type(talks.vocabulary).from_checkpoint(tmp_path / "base", PLAYGROUND.tokens)
    with pytest.raises(InputError, match="was prepared for another tokenizer"):
        open_prompts([tmp_path / "to/talks/prompts"], other)


def test_several_sources_and_their_weights(talks, prepare, tmp_path):
    one = talks.write("one.jsonl", [talks.row(0), talks.row(1)])
    two = talks.write("two.jsonl", [talks.row(2, sft_target_text=None, sft_target_audio=None)])
    assert prepare(f"{one}=3", two)[0] == 0
    from configs.load import load_config

    config = load_config(tmp_path / "to/config.yaml", [])
    to = tmp_path / "to"
    assert config.data.prompts == [
        {"path": str(to / "one/prompts"), "weight": 3.0}, {"path": str(to / "two/prompts"), "weight": 1.0},
    ]  # fmt: skip
    assert config.data.sft == str(to / "one/demonstrations")
    assert config.model.family == "playground"
    assert prepare(f"{one}=3", two)[2] == 0
    assert prepare(f"{one}=5", two)[2] == 0, "a weight is no reason to do it again"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "needs a source"),
        (["none.jsonl"], "none.jsonl is no source of dialogues"),
        (["a.jsonl=0"], "the weight 0 is not allowed"),
        (["a.jsonl=inf"], "the weight inf is not allowed"),
        (["x/a.jsonl", "y/a.parquet"], "another source is named 'a'"),
        (["a.jsonl", "--column", "a=b"], "go with --from-hf"),
        (["a.jsonl", "--rows", "0"], "--rows: '0' is not allowed"),
        (["a.jsonl", "--most-refused", "nan"], "--most-refused: 'nan' is not allowed"),
        (["a.jsonl", "--set", "model.wrong=1"], "unknown configuration key"),
    ],
)
def test_arguments_that_cannot_be_meant(prepare, arguments, complaint):
    code, said, _ = prepare(*arguments)
    assert code == 2
    assert complaint in said


def test_a_folder_of_somebody_else_is_left_alone(talks, prepare, tmp_path):
    (tmp_path / "to/talks/prompts").mkdir(parents=True)
    (tmp_path / "to/talks/prompts/mine.txt").write_text("mine")
    code, said, _ = prepare(talks.write("talks.jsonl", [talks.row(0)]))
    assert code == 2
    assert "`duet prepare` did not make it" in said
    assert (tmp_path / "to/talks/prompts/mine.txt").exists()


def test_a_manifest_of_somebody_else_says_nothing(talks, prepare, tmp_path, world):
    (tmp_path / "to/talks").mkdir(parents=True)
    (tmp_path / "to/talks/manifest.json").write_text('{"files": []}')
    code, said, _ = prepare(talks.write("talks.jsonl", [talks.row(0)]))
    assert (code, "manifest.json is there, and `duet prepare` did not make it" in said) == (2, True)
    (tmp_path / "to/talks/prompts").mkdir()
    shutil.copy(world / "data/held_out.parquet", tmp_path / "to/talks/prompts")
    assert open_prompts([tmp_path / "to/talks/prompts"], talks.vocabulary).families == {None}


def test_a_manifest_that_is_broken_is_refused_and_made_anew(talks, prepare, tmp_path):
    source = talks.write("talks.jsonl", [talks.row(0)])
    assert prepare(source)[0] == 0
    path = tmp_path / "to/talks/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(InputError, match=r"manifest\.json is not a manifest of prepared data: it is not of format 1"):
        opened(talks, tmp_path / "to/talks")
    assert prepare(source)[2] == 1
    assert len(opened(talks, tmp_path / "to/talks")[0]) == 1


def test_nothing_waits_for_a_part_for_ever():
    def slow():
        yield {"number": 0}
        time.sleep(5)

    rows = _within(0.2, slow)
    assert next(rows) == {"number": 0}
    with pytest.raises(TimeoutError, match=r"no part was finished within 0\.2 s"):
        next(rows)

    def broken():
        yield from ()
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        list(_within(5, broken))


def test_a_codec_that_fails_is_a_reason(talks, prepare, tmp_path, monkeypatch):
    def fails(self, waveform):
        raise ZeroDivisionError("no")

    monkeypatch.setattr("playground.codec.PlaygroundCodec.encode", fails)
    code, said, _ = prepare(talks.write("talks.jsonl", [talks.row(0)]))
    assert code == 2
    assert "recording not encoded 1" in said
    monkeypatch.setattr("playground.codec.PlaygroundCodec.encode", lambda self, waveform: np.array([512]))
    assert "recording not encoded 1" in prepare(talks.write("talks.jsonl", [talks.row(0)]))[1]
