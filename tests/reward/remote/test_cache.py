"""The answer cache: hits for equal questions only, and its file."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from reward.remote.cache import (
    ANSWERS,
    AnswerCache,
    CachedAnswer,
    cache_key,
    merge_answers,
    read_answers,
    write_answers,
)
from speech.audio import Waveform
from tests.reward.spoken import spoken

ONE = spoken()


@pytest.mark.parametrize(
    "other",
    [
        cache_key("judge", "2", ONE),
        cache_key("jury", "1", ONE),
        cache_key("judge1", "", ONE),
        cache_key("judge", "1", spoken(sound=1)),
        cache_key("judge", "1", spoken(sound=None)),
        cache_key("judge", "1", replace(ONE, waveform=Waveform(ONE.waveform.samples, 8000))),
        cache_key("judge", "1", spoken(text="oh nine it is")),
        cache_key("judge", "1", spoken(answer="nine")),
        cache_key("judge", "1", spoken(manner="high")),
        cache_key("judge", "1", replace(ONE, prompt=replace(ONE.prompt, text="five plus three"))),
        cache_key("judge", "1", replace(ONE, prompt=replace(ONE.prompt, id="q"))),
        cache_key("judge", "1", ONE, listens=False),
    ],
)
def test_an_answer_is_to_one_question(other):
    assert cache_key("judge", "1", spoken()) == cache_key("judge", "1", ONE) != other


def test_a_rater_that_reads_only_is_asked_once_about_the_same_words():
    assert cache_key("judge", "1", ONE, listens=False) == cache_key("judge", "1", spoken(sound=1), listens=False)


@given(texts=st.lists(st.text(max_size=3), min_size=4, max_size=4), others=st.lists(st.text(max_size=3), min_size=4))
def test_no_two_questions_look_alike(texts, others):
    """Different parts that concatenate to the same text give different keys."""

    def of(name, version, text, answer, *_):
        return cache_key(name, version, spoken(text, answer, sound=None))

    assert (of(*texts) == of(*others)) == (texts == others[:4])


@given(st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 5))), st.integers(0, 4))
def test_the_cache_is_bounded_and_forgets_what_was_longest_of_no_use(steps, size):
    cache, model = AnswerCache("judge", "1", size), {}
    for what, number in steps:
        name = bytes([number]) * 32
        if what == "p":
            cache.put(name, CachedAnswer(score=number, reason=""))
            model.pop(name, None)
            model[name] = number
            model = dict(list(model.items())[max(0, len(model) - size) :])
        else:
            answer = cache.get(name)
            assert (None if answer is None else answer.score) == model.get(name)
            if name in model:
                model[name] = model.pop(name)
    assert cache.table().column("key").to_pylist() == list(model)


def filled(rater: str, version: str, *numbers: int) -> AnswerCache:
    cache = AnswerCache(rater, version, 100)
    for number in numbers:
        cache.put(bytes([number]) * 32, CachedAnswer(score=float(number), reason=f"because {number}"))
    return cache


def test_answers_survive_in_a_file_for_their_rater_and_version(tmp_path):
    tables = [filled("judge", "1", 1, 2).table(), filled("judge", "1", 3, 1).table(), filled("jury", "1", 4).table()]
    write_answers(tmp_path / "judges.parquet", merge_answers(tables))
    table = read_answers(tmp_path / "judges.parquet")
    assert [row["key"][0] for row in table.to_pylist()] == [2, 3, 1, 4]
    same, newer = AnswerCache("judge", "1", 100), AnswerCache("judge", "2", 100)
    same.put(bytes([3]) * 32, CachedAnswer(score=5.0, reason="its own"))
    same.load(table)
    newer.load(table)
    assert len(same) == 3
    assert len(newer) == 0
    assert same.get(bytes([2]) * 32) == CachedAnswer(score=2.0, reason="because 2")
    assert same.get(bytes([3]) * 32) == CachedAnswer(score=5.0, reason="its own")
    assert [row["key"][0] for row in merge_answers(tables, 2).to_pylist()] == [1, 4]
    assert merge_answers([]).num_rows == 0


DAMAGED = {
    "nan": pa.table([[b"x" * 32], ["j"], ["1"], [float("nan")], [""]], schema=ANSWERS),
    "null": pa.table(
        [pa.array([b"x" * 32], pa.binary(32)), ["j"], ["1"], pa.nulls(1, pa.float64()), [""]], ANSWERS.names
    ),
    "short key": pa.table([[b"x"], ["j"], ["1"], [1.0], [""]], ANSWERS.names),
    "columns": pa.table({"score": [1.0]}),
}


@pytest.mark.parametrize("damage", [*DAMAGED, "bytes", "nothing"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "judges.parquet"
    if damage in DAMAGED:
        pq.write_table(DAMAGED[damage], path)
    elif damage == "bytes":
        path.write_bytes(np.random.default_rng(0).bytes(500))
    with pytest.raises(InputError, match=r"judges\.parquet"):
        read_answers(path)
