"""Rows of Parquet by their number: the same records as a list of them, from files that are not read into memory."""

import hashlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from data import dataset as shards_module
from data.dataset import DatasetIndex, name_hashes
from data.open_dataset import PROMPT, open_demonstrations, open_pairs, open_prompts
from data.parquet import UNFINISHED, as_bytes, hashes, id_lists, repeated_hashes, string_bytes
from data.records import PROMPTS, read_demonstrations, read_pairs, read_prompts, scan_prompts
from speech.families import PLAYGROUND
from speech.grammar import check_reply_grammar, follow_grammar, token_kinds
from speech.vocabulary import Vocabulary

IDS = pa.list_(pa.int32())


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture
def folder(world, tmp_path):
    """The held-out prompts in three files of small row groups, and as one file."""
    table = pq.read_table(world / "data/held_out.parquet")
    pq.write_table(table, tmp_path / "whole.parquet")
    (tmp_path / "parts").mkdir()
    for number, begin in enumerate((0, 100, 300)):
        part = table.slice(begin, (100, 200, len(table))[number])
        pq.write_table(part, tmp_path / f"parts/{number}.parquet", row_group_size=32)
    return tmp_path


def said(prompt) -> tuple:
    return prompt.id, prompt.token_ids.tolist(), prompt.text, prompt.facts


def test_every_row_is_the_one_that_a_list_has(folder, vocabulary):
    listed = read_prompts(folder / "whole.parquet", vocabulary)
    for path in ("whole.parquet", "parts"):
        found = open_prompts([folder / path], vocabulary)
        assert len(found) == len(listed)
        order = np.random.default_rng(0).permutation(len(listed)).tolist()
        assert [said(found[n]) for n in order] == [said(listed[n]) for n in order]
        assert [said(p) for p in found] == [said(p) for p in listed]
        assert [p.id for p in found[95:105]] == [p.id for p in listed[95:105]]
        assert found[-1].id == listed[-1].id
        assert found[0].token_ids.dtype == np.int32
        with pytest.raises(IndexError):
            found[len(listed)]
    assert [said(p) for p in read_prompts(folder / "parts", vocabulary)] == [said(p) for p in listed]


def test_the_mark_is_that_of_the_rows_however_they_lie(folder, vocabulary):
    listed = read_prompts(folder / "whole.parquet", vocabulary)
    digest = hashlib.sha256()
    for prompt in listed:
        digest.update(len(prompt.token_ids).to_bytes(4) + prompt.token_ids.astype("<i4").tobytes())
    marks = [open_prompts([folder / path], vocabulary).marks for path in ("whole.parquet", "parts")]
    assert marks == [[digest.hexdigest()[:16]]] * 2
    table = pq.read_table(folder / "whole.parquet")
    pq.write_table(table.take(np.arange(len(table))[::-1]), folder / "back.parquet")
    assert open_prompts([folder / "back.parquet"], vocabulary).marks != marks[0]


def test_several_sources_lie_one_behind_another(folder, vocabulary, world):
    found = open_prompts([folder / "parts", world / "data/train.parquet"], vocabulary)
    counts = [len(pq.read_table(world / f"data/{name}.parquet")) for name in ("held_out", "train")]
    assert found.counts == counts
    first = read_prompts(world / "data/train.parquet", vocabulary)[0]
    assert found[counts[0]].id == first.id
    assert found.place(counts[0]) == f"{world / 'data/train.parquet'} row 1"
    assert found.place(100) == f"{folder / 'parts/1.parquet'} row 1"
    with pytest.raises(InputError, match=r"whole\.parquet row 1: field 'id' is .*, as in .*0\.parquet row 1"):
        open_prompts([folder / "parts", folder / "whole.parquet"], vocabulary)


def test_few_row_groups_are_in_memory(folder, vocabulary, monkeypatch):
    found = open_prompts([folder / "parts"], vocabulary)
    size = found._read(0).nbytes
    monkeypatch.setattr(shards_module, "KEPT", 3 * size)
    monkeypatch.setattr(shards_module, "OPEN", 1)
    for row in np.random.default_rng(0).permutation(len(found)).tolist():
        found[row]
        assert sum(kept for _, kept in found._kept.values()) <= 3 * size
        assert len(found._open) == 1
    assert len(found._kept) > 1


def test_records_by_name(world, vocabulary):
    found = open_demonstrations([world / "data/demonstrations.parquet"], vocabulary)
    listed = read_demonstrations(world / "data/demonstrations.parquet", vocabulary)
    first, last = ({}, {d.prompt_id: d for d in listed})
    for one in listed:
        first.setdefault(one.prompt_id, one)
    for by_id, wanted in (
        (DatasetIndex(found, "prompt_id"), first),
        (DatasetIndex(found, "prompt_id", last=True), last),
    ):
        assert len(by_id) == len(wanted)
        assert set(by_id) == set(wanted)
        for name in list(wanted)[::50]:
            assert by_id[name].reply_ids.tolist() == wanted[name].reply_ids.tolist()
        assert "nobody" not in by_id
        assert by_id.get("nobody") is None
    assert (name_hashes(listed, "prompt_id") == name_hashes(found, "prompt_id")).all()


def test_of_records_of_one_name_the_first_or_the_last(tmp_path, world, vocabulary):
    table = pq.read_table(world / "data/demonstrations.parquet").slice(0, 6)
    names = pa.array(["a", "b", "a", "b", "a", "c"])
    pq.write_table(table.set_column(0, "prompt_id", names), tmp_path / "d.parquet", row_group_size=2)
    found = open_demonstrations([tmp_path / "d.parquet"], vocabulary)
    rows = table["reply_ids"].to_pylist()
    assert DatasetIndex(found, "prompt_id")["a"].reply_ids.tolist() == rows[0]
    assert DatasetIndex(found, "prompt_id", last=True)["a"].reply_ids.tolist() == rows[4]
    assert len(DatasetIndex(found, "prompt_id")) == 3


def prompts(**columns) -> pa.Table:
    given = {"id": ["a", "b"], "token_ids": [[1], [2]], "text": ["", ""], "facts": [[("x", "y")], []]} | columns
    return pa.table({f.name: pa.array(given[f.name], f.type) for f in PROMPTS})


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (prompts(id=["a", "a"]), "row 2: field 'id' is 'a', as in row 1"),
        (prompts(id=["a", None]), "row 2: field 'id' is missing"),
        (prompts(id=["a", "x" * 201]), "row 2: field 'id'.*1 to 200"),
        (prompts(id=["a", "\x1b"]), "row 2: field 'id'"),
        (prompts(token_ids=[[1], []]), "row 2: field 'token_ids' is empty"),
        (prompts(token_ids=[[1], [1, None]]), "row 2: .*missing id at position 1"),
        (prompts(token_ids=[[1], [547]]), "row 2: .*holds id 547"),
        (prompts(facts=[[], [("x", "y"), ("z", "y"), ("x", "z")]]), "row 2: field 'facts' gives 'x' twice"),
        (prompts(facts=[[], [("x", None)]]), "row 2: field 'facts' has no value for 'x'"),
        (prompts(text=["", None]), "row 2: field 'text' is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, vocabulary, table, complaint):
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=1)
    with pytest.raises(InputError, match=complaint):
        open_prompts([tmp_path / "p.parquet"], vocabulary)


def test_what_merely_looks_strange_is_read(tmp_path, vocabulary):
    """Names beyond ASCII, the same fact in two rows."""
    pq.write_table(prompts(id=["ä", "名"], facts=[[("x", "y")], [("x", "y")]]), tmp_path / "p.parquet")
    found = open_prompts([tmp_path / "p.parquet"], vocabulary)
    assert [p.id for p in found] == ["ä", "名"]
    assert found[1].facts == {"x": "y"}
    assert (found.longest, len(found.marks)) == (1, 1)


def test_an_id_twice_is_found_among_files(folder, vocabulary):
    shutil.copy(folder / "parts/0.parquet", folder / "parts/9.parquet")
    refused = [found for _, found in scan_prompts(folder / "parts", vocabulary) if isinstance(found, InputError)]
    assert len(refused) == 100
    with pytest.raises(InputError, match=r"9\.parquet row 1: field 'id' is .*, as in .*0\.parquet row 1"):
        open_prompts([folder / "parts"], vocabulary)


def test_a_row_group_must_fit_into_memory(folder, vocabulary, monkeypatch):
    monkeypatch.setattr(shards_module, "LARGEST_GROUP", 1000)
    with pytest.raises(InputError, match="row_group_size=1024"):
        open_prompts([folder / "whole.parquet"], vocabulary)


def test_a_folder_that_is_not_whole_or_holds_nothing(folder, vocabulary):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty does not exist: it is a folder, and no Parquet file is in it"):
        open_prompts([folder / "empty"], vocabulary)
    (folder / UNFINISHED).touch()
    with pytest.raises(InputError, match="`duet prepare` was interrupted"):
        open_prompts([folder / "parts"], vocabulary)


def test_a_file_that_changes_later(folder, vocabulary):
    found = open_prompts([folder / "parts"], vocabulary)
    pq.write_table(pq.read_table(folder / "whole.parquet").slice(0, 7), folder / "parts/1.parquet")
    with pytest.raises(InputError, match=r"1\.parquet has changed since it was opened"):
        found[120]


def test_pairs_from_parquet_are_those_of_a_list(tmp_path, vocabulary):
    row = {"prompt_id": "a", "prompt_ids": [1, 2], "chosen_ids": [5, 2], "rejected_ids": [6, 2], "chosen_score": 4.5}
    rows = [row | {"scores_chosen": [("answer", 5.0)]}, row | {"chosen_ids": [9], "chosen_score": None}]
    schema = [("prompt_id", pa.string()), ("prompt_ids", IDS), ("chosen_ids", IDS), ("rejected_ids", IDS)]
    schema += [("chosen_score", pa.float32()), ("scores_chosen", pa.map_(pa.string(), pa.float32()))]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(schema)), tmp_path / "pairs.parquet", row_group_size=1)
    for one, other in zip(
        open_pairs([tmp_path / "pairs.parquet"], vocabulary), read_pairs(tmp_path / "pairs.parquet", vocabulary),
        strict=True,
    ):  # fmt: skip
        assert (one.chosen_score, one.scores_chosen, one.origin) == (other.chosen_score, other.scores_chosen, "")
        assert (one.chosen_ids.tolist(), one.rejected_ids.tolist()) == (
            other.chosen_ids.tolist(), other.rejected_ids.tolist(),
        )  # fmt: skip


TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=20)), max_size=12)


@given(texts=TEXTS, cut=st.integers(0, 5))
def test_equal_strings_have_equal_hashes_and_others_differ(texts, cut):
    column = pa.array(texts, pa.string())
    found = hashes(string_bytes(column))
    alone = [int(hashes(string_bytes(pa.array([text or ""])))[0]) for text in texts]
    assert found.tolist() == alone, "in whatever company they are"
    assert len(set(alone)) == len({text or "" for text in texts})
    assert hashes(string_bytes(column.slice(cut))).tolist() == alone[cut:]
    again = {value for value in alone if alone.count(value) > 1}
    assert repeated_hashes(found).tolist() == sorted(again)


@given(rows=st.lists(st.tuples(*[st.lists(st.integers(0, 2**31 - 1), max_size=5)] * 2), min_size=1, max_size=6))
def test_bytes_of_columns_are_those_of_the_rows(rows):
    columns = [id_lists(pa.array([row[place] for row in rows], IDS)) for place in range(2)]
    wanted = b"".join(len(ids).to_bytes(4) + np.asarray(ids, dtype="<i4").tobytes() for row in rows for ids in row)
    assert as_bytes(columns) == wanted


@given(data=st.data())
def test_all_replies_are_checked_as_each_is(vocabulary, world, data):
    """Valid replies with a few ids changed, cut off, or repeated."""
    kinds = token_kinds(vocabulary)
    replies = [d.reply_ids for d in _some(world, vocabulary)]
    made = []
    for ids in replies:
        ids = ids.copy()
        for _ in range(data.draw(st.integers(0, 1))):
            ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.integers(0, vocabulary.size - 1))
        made.append(ids[: data.draw(st.sampled_from([len(ids), len(ids) - 1, 1]))])
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in made])])
    found = follow_grammar(np.concatenate(made), offsets, PLAYGROUND.interleave, kinds)
    assert found.tolist() == [check_reply_grammar(ids, PLAYGROUND.interleave, kinds) is None for ids in made]


_SOME: list = []


def _some(world, vocabulary) -> list:
    if not _SOME:
        _SOME.extend(read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:6])
    return _SOME


def test_the_kind_names_its_columns_of_ids():
    assert PROMPT.ids == ["token_ids"]
