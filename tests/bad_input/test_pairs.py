"""Invalid pairs and scored replies: rejected by line and field, and no file is written."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from data.records import read_pairs
from duet import pairs
from duet.__main__ import execute
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.bad_input.door import Setup, refused, refused_or_read

pytestmark = pytest.mark.timeout(60)

DPO = ("algorithm.name=dpo", "mix_ratio.schedule=fixed", "rollout.batch_size=1")
GOOD = {
    "prompt_id": "a", "prompt_ids": [1, 2], "chosen_ids": [5, 2], "rejected_ids": [6, 2], "chosen_score": 4.5,
    "rejected_score": 1.0, "scores_chosen": {"answer": 5.0}, "scores_rejected": {}, "origin": "somewhere",
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


def line(**changes) -> bytes:
    return json.dumps(GOOD | changes).encode() + b"\n"


LINES = {
    "nothing": (b"", "has no rows"),
    "empty lines": (b"\n \n\t\n", "has no rows"),
    "words": (b"hello\n", "line 1 is not JSON"),
    "half a line": (line() + line()[:50], "line 2 is not JSON"),
    "bytes": (line() + bytes(range(256)), "UTF-8"),
    "UTF-16": (line().decode().encode("utf-16"), "UTF-8"),
    "Parquet": (b"PAR1" + bytes(100) + b"\xff", "UTF-8"),
    "a list": (b"[]\n", "line 1 is not a JSON object"),
    "a list of all": (b"[" + line() + b"]", "line 1 is not JSON"),
    "brackets": (b"[" * 50_000, "line 1", "too deeply"),
    "a field twice": (line()[:-2] + b', "origin": "else"}', "line 1", "'origin' appears twice"),
    "half a character": (line(origin="\ud800"), "line 1", "half a character"),
    "5000 digits": (b'{"prompt_ids": [' + b"9" * 5000 + b"]}", "line 1"),
    "no prompt": (b'{"chosen_ids": [1], "rejected_ids": [2]}', "line 1", "'prompt_id' is missing"),
    "no replies": (b'{"prompt_id": "a", "prompt_ids": [1]}', "line 1", "'chosen_ids' is missing"),
    "a number for a name": (line() + line(prompt_id=5), "line 2", "'prompt_id' is not of type string"),
    "ids of a number": (line(prompt_ids=5), "line 1", "'prompt_ids' is not of type list"),
    "ids of words": (line(chosen_ids=["5"]), "line 1", "'chosen_ids' is not of type list", "'5' is not a whole number"),
    "ids of fractions": (line(chosen_ids=[5.0]), "line 1", "5.0 is not a whole number"),
    "ids of a table": (line(chosen_ids={"5": 5}), "line 1", "'chosen_ids' is not of type list"),
    "ids beyond 64 bits": (line(chosen_ids=[10**30]), "line 1", "'chosen_ids' is not of type list"),
    "ids that are negative": (line(rejected_ids=[-5]), "line 1", "id -5", "vocabulary of 547"),
    "no ids": (line(rejected_ids=[]), "line 1", "'rejected_ids' is empty"),
    "twice the same reply": (line(rejected_ids=[5, 2]), "line 1", "the same as 'chosen_ids'"),
    "a score of NaN": (line(chosen_score=float("nan")), "line 1", "'chosen_score' holds nan"),
    "a score beyond floats": (line(chosen_score=1e300), "line 1", "'chosen_score' holds inf"),
    "a score of words": (line(rejected_score="good"), "line 1", "'rejected_score' is not of type float"),
    "scores of a list": (line(scores_chosen=[5]), "line 1", "'scores_chosen' is not of type map"),
    "scores of nothing": (line(scores_chosen={"a": None}), "line 1", "'scores_chosen' holds None"),
    "another structure": (line(), "row 1", "violates the grammar"),
}  # fmt: skip
"""By name: the bytes of a file of pairs, and what the error must mention."""


@pytest.mark.parametrize("name", LINES)
def test_files_of_pairs(setup: Setup, name: str):
    content, *mentions = LINES[name]
    path = setup.folder / "pairs.jsonl"
    path.write_bytes(content)
    refused(setup.folder, lambda: setup.enter(*DPO, f"algorithm.dpo.pairs_file={path}"), "pairs.jsonl", *mentions)


def test_pairs_with_a_score_twice(setup):
    schema = pa.schema([("prompt_id", pa.string()), *((n, pa.list_(pa.int32())) for n in ("prompt_ids", "chosen_ids"))])
    scores = [("rejected_ids", pa.list_(pa.int32())), ("scores_chosen", pa.map_(pa.string(), pa.float32()))]
    for field in scores:
        schema = schema.append(pa.field(*field))
    row = {name: GOOD[name] for name in schema.names} | {"scores_chosen": [("answer", 5.0), ("answer", 1.0)]}
    path = setup.folder / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema=schema), path)
    refused(
        setup.folder, lambda: setup.enter(*DPO, f"algorithm.dpo.pairs_file={path}"), "row 1", "'scores_chosen'", "twice"
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 600) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(name=st.sampled_from([*GOOD, "other"]), value=VALUES)
@example(name="chosen_ids", value=[10**400])
@example(name="chosen_score", value=10**400)
def test_any_value_in_a_pair(tmp_path_factory, vocabulary, name, value):
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "pairs.jsonl"
    path.write_bytes(line(**{name: value}))
    found = refused_or_read(folder, lambda: read_pairs(path, vocabulary))
    for pair in found or []:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            assert len(ids) > 0
            assert ((ids >= 0) & (ids < vocabulary.size)).all()
        assert all(score is None or abs(score) < 1e39 for score in (pair.chosen_score, pair.rejected_score))


@given(content=st.binary(max_size=100), at=st.integers(0, 400), cut=st.integers(0, 40))
def test_any_bytes_in_a_line(tmp_path_factory, vocabulary, content, at, cut):
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "pairs.jsonl"
    path.write_bytes(line()[:at] + content + line()[at + cut :])
    refused_or_read(folder, lambda: read_pairs(path, vocabulary))


def command(setup: Setup, content: bytes, suffix: str = ".jsonl", **changes) -> None:
    """`duet pairs --scored FILE --config CONFIG --out FILE`."""
    path = setup.folder / f"scored{suffix}"
    if not path.exists():
        path.write_bytes(content)
    given = {"scored": path, "config": setup.config, "out": setup.folder / "out.parquet"}
    execute(["pairs", *(word for name, value in (given | changes).items() for word in (f"--{name}", str(value)))])


def scored(name: str = "x", **reply) -> bytes:
    whole = {"gemini_score": {"semantic_score": 4, "paralinguistic_score": 2}, "output-ids": [5, 2]} | reply
    return json.dumps({"id": name, "prompt_ids": [1], "output": {"a": whole}}).encode() + b"\n"


SCORED = {
    "nothing": (b"", ".jsonl", "has no records"),
    "words": (b"hello", ".jsonl", "line 1 is not JSON"),
    "bytes": (bytes(range(256)), ".jsonl", "UTF-8"),
    "brackets": (b"[" * 50_000, ".json", "too deeply"),
    "an object for a list": (b"{}", ".json", "expected a list"),
    "numbers": (b"[1]", ".json", "record 1", "expected an object"),
    "no replies": (b'{"id": "x", "output": {}}', ".jsonl", "line 1", "'output'"),
    "a reply twice": (b'{"id": "x", "output": {"a": {}, "a": {}}}', ".jsonl", "line 1", "'a' appears twice"),
    "a reply of a list": (b'{"id": "x", "prompt_ids": [1], "output": {"a": []}}', ".jsonl", "output 'a'", "list"),
    "a name of true": (b'{"id": true, "output": {"a": {}}}', ".jsonl", "line 1", "'id'", "bool"),
    "a prompt that is not there": (b'{"id": "x", "output": {"a": {}}}', ".jsonl", "line 1", "'x'", "prompt_ids"),
    "a prompt of words": (b'{"id": "x", "prompt_ids": "a", "output": {"a": {}}}', ".jsonl", "'prompt_ids'"),
    "a score of words": (scored(gemini_score={"semantic_score": "4"}), ".jsonl", "'semantic_score'", "'4'"),
    "a score of true": (scored(gemini_score={"semantic_score": True}), ".jsonl", "output 'a'", "True", "no score"),
    "a score of NaN": (scored(gemini_score={"semantic_score": float("nan")}), ".jsonl", "output 'a'", "nan"),
    "a score beyond floats": (scored(gemini_score={"semantic_score": 10**400}), ".jsonl", "output 'a'", "no score"),
    "scores of a list": (scored(gemini_score=[4, 2]), ".jsonl", "output 'a'", "'gemini_score'"),
    "ids of words": (scored(**{"output-ids": ["5"]}), ".jsonl", "output 'a'", "'output-ids'", "whole numbers"),
    "foreign ids": (scored(**{"output-ids": [547]}), ".jsonl", "output 'a'", "547", "[0, 547)"),
    "half a character": (scored(**{"output-ids": None, "output-text": "\ud800"}), ".jsonl", "half a character"),
    "a text of numbers": (
        scored(**{"output-ids": None, "output-text": 5, "output-codes": [1]}), ".jsonl", "'output-text'", "int",
    ),
    "codes beyond the codec": (
        scored(**{"output-ids": None, "output-text": "two", "output-codes": [512]}), ".jsonl", "512", "[0, 512)",
    ),
    "another kind of file": (b"{}", ".csv", ".jsonl", ".json"),
}  # fmt: skip
"""By name: the bytes of a file of scored replies, its suffix, and what the error must mention."""


@pytest.mark.parametrize("name", SCORED)
def test_files_of_scored_replies(setup: Setup, name: str):
    content, suffix, *mentions = SCORED[name]
    (setup.folder / f"scored{suffix}").write_bytes(content)
    refused(setup.folder, lambda: command(setup, content, suffix), f"scored{suffix}", *mentions)


OPTIONS = {
    "a margin of NaN": ({"margin": float("nan")}, "--margin", "nan"),
    "a margin without end": ({"margin": float("inf")}, "--margin", "inf"),
    "no file": ({"scored": Path("none.jsonl")}, "none.jsonl does not exist"),
    "a name that no file has": ({"scored": Path("x" * 5000 + ".jsonl")}, "does not exist"),
    "no configuration": ({"config": Path("none.yaml")}, "none.yaml does not exist"),
    "a folder": ({"out": Path("/tmp")}, "--out", "is a directory"),
    "below a file": ({"out": Path("/etc/passwd/x.parquet")}, "--out", "cannot be written"),
    "a name too long": ({"out": Path("x" * 300)}, "--out", "cannot be written"),
}
"""By name: options of the command, and what the error must mention."""


@pytest.mark.parametrize("name", OPTIONS)
def test_options(setup: Setup, name: str):
    changes, *mentions = OPTIONS[name]
    better, worse = ({"semantic_score": s, "paralinguistic_score": s} for s in (5, 1))
    demonstrations = setup.table("demonstrations")["reply_ids"].to_pylist()
    replies = {
        "a": {"gemini_score": better, "output-ids": demonstrations[0]},
        "b": {"gemini_score": worse, "output-ids": next(ids for ids in demonstrations if ids != demonstrations[0])},
    }
    content = json.dumps({"id": "x", "prompt_ids": [1], "output": replies}).encode()
    (setup.folder / "scored.jsonl").write_bytes(content)
    refused(setup.folder, lambda: command(setup, content, **changes), *mentions)
    command(setup, content)
    assert pq.read_table(setup.folder / "out.parquet").num_rows == 1


def test_a_configuration_that_says_nothing_of_tokens(setup):
    for section in ({"model": {"path": "${nowhere}"}}, {"model": 5}, {"data": []}):
        setup.config.write_text(yaml.safe_dump(setup.settings | section))
        refused(setup.folder, lambda: pairs.read_pair_sources(setup.config), "mine.yaml")
