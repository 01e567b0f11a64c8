"""Bad input: one clear sentence that names the file, the row or the token."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from data.records import DEMONSTRATIONS, PAIRS, PROMPTS, read_demonstrations, read_pairs, read_prompts
from speech.audio import Waveform
from speech.families import PLAYGROUND, family
from speech.grammar import check_reply_grammar, token_kinds
from speech.vocabulary import Channel, Vocabulary


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


def test_tokens_come_from_the_tokenizer_by_name(vocabulary):
    """Method §7, rule 6."""
    names = vocabulary.tokenizer
    assert vocabulary.end_reply == names.token_to_id("<|im_end|>")
    assert vocabulary.speech_first == names.token_to_id("<|audio_0|>")
    ids = np.array([names.token_to_id(n) for n in ("<|begin_of_audio|>", "<|audio_7|>", "<|im_end|>", "<|pad|>")])
    assert vocabulary.channels(ids).tolist() == [Channel.BOUNDARY, Channel.SPEECH, Channel.END, -1]
    assert vocabulary.codes(ids).tolist() == [7]


def shuffled(world, folder) -> tuple[Vocabulary, np.ndarray]:
    """The vocabulary of a checkpoint whose tokenizer numbers the same tokens otherwise, and the new id of every old
    one."""
    shutil.copytree(world / "base", folder / "base")
    path = folder / "base/tokenizer.json"
    content = json.loads(path.read_text())
    old = content["model"]["vocab"]
    speech = [name for name in old if name.startswith("<|audio_")]
    others = [name for name in reversed(old) if not name.startswith("<|audio_")]
    # Speech stays in one piece, as it must, and begins somewhere else.
    new = {name: index for index, name in enumerate([*others[:7], *speech, *others[7:]])}
    content["model"]["vocab"] = new
    for token in content["added_tokens"]:
        token["id"] = new[token["content"]]
    content["added_tokens"].sort(key=lambda token: token["id"])
    path.write_text(json.dumps(content))
    ids = np.empty(len(old), dtype=np.int64)
    for name, index in old.items():
        ids[index] = new[name]
    return Vocabulary.from_checkpoint(folder / "base", PLAYGROUND.tokens), ids


def test_the_same_tokens_under_other_ids_mean_the_same(tmp_path, vocabulary, world):
    """Method §7, rule 6: no id is a constant, and none is derived from another."""
    moved, ids = shuffled(world, tmp_path)
    assert (ids != np.arange(len(ids))).all()
    every = np.arange(vocabulary.size)
    assert moved.channels(ids).tolist() == vocabulary.channels(every).tolist()
    assert token_kinds(moved)[ids].tolist() == token_kinds(vocabulary).tolist()
    assert (moved.end_reply, moved.pad) == (ids[vocabulary.end_reply], ids[vocabulary.pad])
    assert (moved.begin_speech, moved.end_speech) == (ids[vocabulary.begin_speech], ids[vocabulary.end_speech])
    for d in read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:8]:
        assert moved.text(ids[d.reply_ids]) == vocabulary.text(d.reply_ids)
        assert moved.codes(ids[d.reply_ids]).tolist() == vocabulary.codes(d.reply_ids).tolist()
        assert check_reply_grammar(ids[d.reply_ids], PLAYGROUND.interleave, token_kinds(moved)) is None


def test_speech_is_the_codebook_and_nothing_beyond_it(world):
    """Method §7, rule 5 and rule 6: [first, first + codebook); a speech token without a code is in no reply."""
    small = replace(PLAYGROUND.tokens, codebook=256)
    vocabulary = Vocabulary.from_checkpoint(world / "base", small)
    first, beyond = vocabulary.speech_first, vocabulary.speech_first + 256
    assert vocabulary.channels(np.array([first, beyond - 1])).tolist() == [Channel.SPEECH] * 2
    assert vocabulary.channels(np.arange(beyond, beyond + 256)).tolist() == [-1] * 256
    assert vocabulary.codes(np.array([first - 1, first, beyond - 1, beyond])).tolist() == [0, 255]
    b, e, end, word = vocabulary.begin_speech, vocabulary.end_speech, vocabulary.end_reply, first - 1
    kinds = token_kinds(vocabulary)
    assert check_reply_grammar(np.array([word, b, beyond - 1, e, end]), PLAYGROUND.interleave, kinds) is None
    for reply in ([word, b, beyond, e, end], [beyond, b, first, e, end]):
        assert "outside every channel" in check_reply_grammar(np.array(reply), PLAYGROUND.interleave, kinds)


def test_padding_rows_of_the_output_layer_belong_in_no_reply(tmp_path, world):
    """Method §7, rule 5."""
    shutil.copytree(world / "base", tmp_path / "base")
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 576}))
    vocabulary = Vocabulary.from_checkpoint(tmp_path / "base", PLAYGROUND.tokens)
    assert vocabulary.channels(np.arange(vocabulary.text_size, 576)).tolist() == [-1] * (576 - vocabulary.text_size)
    assert not token_kinds(vocabulary)[vocabulary.text_size :].any()


def test_shipped_data_reads(vocabulary, world):
    assert len(read_prompts(world / "data/held_out.parquet", vocabulary)) >= 300
    assert len(read_demonstrations(world / "data/demonstrations.parquet", vocabulary)) >= 2048


def prompt(**changes) -> dict:
    return {"id": "a", "token_ids": [1, 2], "text": "one", "facts": [("answer", "one")]} | changes


def written(path, rows, schema=PROMPTS):
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([f.with_nullable(True) for f in schema])), path)
    return path


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([prompt(), prompt(token_ids=None)], "row 2: field 'token_ids' is missing"),
        ([prompt(), prompt(facts=None)], "row 2: field 'facts' is missing"),
        ([prompt(token_ids=[])], "row 1: field 'token_ids' is empty"),
        ([prompt(token_ids=[3, None])], "row 1: field 'token_ids' has a missing id at position 1"),
        ([prompt(token_ids=[3, 100000])], "row 1: field 'token_ids' holds id 100000, outside the vocabulary"),
        ([prompt(token_ids=[-1])], "row 1: field 'token_ids' holds id -1"),
        ([], "has no rows"),
    ],
)
def test_bad_rows(tmp_path, vocabulary, rows, complaint):
    with pytest.raises(InputError, match=complaint):
        read_prompts(written(tmp_path / "p.parquet", rows), vocabulary)


def test_missing_column_and_foreign_file(tmp_path, vocabulary):
    with pytest.raises(InputError, match="has no column 'prompt_id'"):
        read_demonstrations(written(tmp_path / "p.parquet", [prompt()]), vocabulary)
    (tmp_path / "x.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="is not a Parquet file"):
        read_prompts(tmp_path / "x.parquet", vocabulary)
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "none.parquet", vocabulary)
    wrong = [{"prompt_id": "a", "prompt_ids": [1], "reply_ids": [1, 10**6], "text": "", "manner": ""}]
    with pytest.raises(InputError, match="field 'reply_ids' holds id 1000000"):
        read_demonstrations(written(tmp_path / "d.parquet", wrong, DEMONSTRATIONS), vocabulary)


def pair(**changes) -> dict:
    row = {"prompt_id": "a", "prompt_ids": [1, 2], "chosen_ids": [5, 2], "rejected_ids": [6, 2]}
    scores = {"chosen_score": 4.5, "rejected_score": 1.0, "scores_chosen": {"answer": 5.0}, "scores_rejected": {}}
    return row | scores | {"origin": "somewhere"} | changes


def written_pairs(folder, suffix, rows):
    path = folder / f"pairs{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    names = [f for f in PAIRS if not rows or any(f.name in row for row in rows)]
    return written(path, rows, pa.schema(names))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_pairs_read_with_and_without_scores(tmp_path, vocabulary, suffix):
    [whole] = read_pairs(written_pairs(tmp_path, suffix, [pair()]), vocabulary)
    assert (whole.chosen_ids.tolist(), whole.rejected_ids.tolist(), whole.prompt_ids.tolist()) == (
        [5, 2],
        [6, 2],
        [1, 2],
    )
    assert (whole.chosen_score, whole.scores_chosen, whole.scores_rejected) == (4.5, {"answer": 5.0}, {})
    bare = {name: value for name, value in pair().items() if name in ("prompt_id", "prompt_ids")}
    bare |= {"chosen_ids": [5], "rejected_ids": [6]}
    [bare] = read_pairs(written_pairs(tmp_path, suffix, [bare]), vocabulary)
    assert (bare.chosen_score, bare.rejected_score, bare.scores_chosen, bare.origin) == (None, None, {}, "")
    assert bare.chosen_ids.dtype == np.int32


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([pair(), pair(chosen_ids=None)], "(row|line) 2: field 'chosen_ids' is missing"),
        ([pair(prompt_id=None)], "(row|line) 1: field 'prompt_id' is missing"),
        ([pair(rejected_ids=[])], "(row|line) 1: field 'rejected_ids' is empty"),
        ([pair(rejected_ids=[1, None])], "(row|line) 1: field 'rejected_ids' has a missing id at position 1"),
        ([pair(prompt_ids=[10**6])], "(row|line) 1: field 'prompt_ids' holds id 1000000, outside the vocabulary"),
        ([pair(), pair(rejected_ids=[5, 2])], "(row|line) 2: field 'rejected_ids' is the same as 'chosen_ids'"),
        ([pair(chosen_score=float("nan"))], "(row|line) 1: field 'chosen_score' holds nan, which is no score"),
        ([pair(scores_chosen={"a": None})], "(row|line) 1: field 'scores_chosen' holds None, which is no score"),
        ([], "has no rows"),
    ],
)
def test_bad_pairs(tmp_path, vocabulary, suffix, rows, complaint):
    with pytest.raises(InputError, match=rf"pairs\{suffix}.*{complaint}"):
        read_pairs(written_pairs(tmp_path, suffix, rows), vocabulary)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[1]", "line 2 is not a JSON object with the fields prompt_id, "),
        ("{", "line 2 is not JSON"),
        (json.dumps(pair(chosen_ids="5 2")), "line 2: field 'chosen_ids' is not of type list<"),
        (json.dumps(pair(chosen_ids=[5.5])), "line 2: field 'chosen_ids' is not of type list<"),
        (json.dumps(pair(chosen_ids=[True])), "line 2: field 'chosen_ids' is not of type list<"),
        (json.dumps(pair(scores_chosen=[5])), "line 2: field 'scores_chosen' is not of type map<"),
        (json.dumps(pair(origin=7)), "line 2: field 'origin' is not of type string"),
    ],
)
def test_bad_lines_of_pairs(tmp_path, vocabulary, line, complaint):
    (tmp_path / "pairs.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=complaint):
        read_pairs(tmp_path / "pairs.jsonl", vocabulary)


def test_pairs_without_a_column_or_a_file(tmp_path, vocabulary):
    without = {name: value for name, value in pair().items() if name != "chosen_ids"}
    with pytest.raises(InputError, match="has no column 'chosen_ids'"):
        read_pairs(written_pairs(tmp_path, ".parquet", [without]), vocabulary)
    for name in ("none.parquet", "none.jsonl"):
        with pytest.raises(InputError, match="does not exist"):
            read_pairs(tmp_path / name, vocabulary)


def test_tokenizer_without_speech_tokens(tmp_path, world):
    """Method §7, rule 6: a token that the tokenizer does not name is an error, not a guess."""
    shutil.copytree(world / "base", tmp_path / "base")
    path = tmp_path / "base/tokenizer.json"
    path.write_text(path.read_text().replace("<|audio_", "<|other_"))
    with pytest.raises(InputError, match=r"tokenizer.json has no token '<\|audio_0\|>'"):
        Vocabulary.from_checkpoint(tmp_path / "base", PLAYGROUND.tokens)


def test_output_layer_smaller_than_the_tokenizer(tmp_path, world):
    shutil.copytree(world / "base", tmp_path / "base")
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10}))
    with pytest.raises(InputError, match="vocab_size is 10"):
        Vocabulary.from_checkpoint(tmp_path / "base", PLAYGROUND.tokens)


def test_not_a_checkpoint_and_no_such_family(tmp_path):
    with pytest.raises(InputError, match="not a checkpoint"):
        Vocabulary.from_checkpoint(tmp_path, PLAYGROUND.tokens)
    with pytest.raises(InputError, match=r"unknown family 'x'; known: .*playground"):
        family("x")


def test_a_waveform_keeps_its_rate(tmp_path):
    """Method §7, rule 2: written, read and resampled, a tone of 440 Hz stays one and lasts as long."""
    tone = Waveform(np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32) * 0.5, 22050)
    tone.write(tmp_path / "tone.wav")
    back = Waveform.read(tmp_path / "tone.wav")
    assert back.rate == 22050
    assert back.seconds == pytest.approx(1.0)
    slow = back.at_rate(16000)
    assert slow.seconds == pytest.approx(1.0, abs=1e-3)
    spectrum = np.abs(np.fft.rfft(slow.samples))
    assert np.argmax(spectrum) * 16000 / len(slow.samples) == pytest.approx(440, abs=2)
