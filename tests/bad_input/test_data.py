"""Invalid data files: each is rejected by file, row and column."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bad_input.door import ROWS, Setup, refused

pytestmark = pytest.mark.timeout(60)

WORDS, IDS = pa.string(), pa.list_(pa.int32())
FACTS = pa.map_(pa.string(), pa.string())


def rows(table: pa.Table, number: int, column: str, value) -> pa.Table:
    """The table with another value in one row of a column."""
    values = table[column].to_pylist()
    values[number - 1] = value
    place, kind = table.column_names.index(column), table.schema.field(column).type
    return table.set_column(place, pa.field(column, kind), pa.array(values, kind))


def column(table: pa.Table, name: str, values: list, kind: pa.DataType) -> pa.Table:
    """The table with another column in place of the one of that name."""
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


CASES = {
    "prompts without ids": ("train", lambda t: t.drop_columns(["token_ids"]), "train.parquet has no column"),
    "prompts without names": ("train", lambda t: t.drop_columns(["id"]), "has no column 'id'"),
    "prompts without facts": ("train", lambda t: t.drop_columns(["facts"]), "has no column 'facts'"),
    "no rows": ("train", lambda t: t.slice(0, 0), "train.parquet has no rows"),
    "no columns": ("train", lambda t: t.select([]), "has no column 'id'"),
    "too few rows": ("train", lambda t: t.slice(0, 5), "rollout.batch_size: 16", "has only 5"),
    "a column twice": ("train", lambda t: t.append_column("id", t["id"]), "two columns 'id'"),
    "a null name": ("train", lambda t: rows(t, 3, "id", None), "row 3", "'id' is missing"),
    "an empty name": ("train", lambda t: rows(t, 3, "id", ""), "row 3", "'id'", "1 to 200"),
    "a name of 300 letters": ("train", lambda t: rows(t, 3, "id", "x" * 300), "row 3", "'id'", "1 to 200"),
    "a name with a null byte": ("train", lambda t: rows(t, 3, "id", "a\0b"), "row 3", "'id'", r"'a\x00b'"),
    "a name with an escape": ("train", lambda t: rows(t, 3, "id", "\x1b[31m"), "row 3", r"\x1b"),
    "a name twice": ("train", lambda t: rows(t, 3, "id", t["id"][0].as_py()), "row 3", "'id'", "as in row 1"),
    "null ids": ("train", lambda t: rows(t, 5, "token_ids", None), "row 5", "'token_ids' is missing"),
    "no ids": ("train", lambda t: rows(t, 5, "token_ids", []), "row 5", "'token_ids' is empty"),
    "a null id": ("train", lambda t: rows(t, 5, "token_ids", [1, None]), "row 5", "missing id at position 1"),
    "a negative id": ("train", lambda t: rows(t, 5, "token_ids", [1, -1]), "row 5", "id -1", "vocabulary of 547"),
    "an id too large": ("train", lambda t: rows(t, 5, "token_ids", [547]), "row 5", "id 547", "vocabulary of 547"),
    "ids beyond 32 bits": (
        "train", lambda t: column(t, "token_ids", [[2**40]] * ROWS, pa.list_(pa.int64())), "expected types",
    ),
    "ids that are fractions": (
        "train", lambda t: column(t, "token_ids", [[1.5]] * ROWS, pa.list_(pa.float64())), "expected types",
    ),
    "ids that are no numbers": (
        "train", lambda t: column(t, "token_ids", [[float("nan")]] * ROWS, pa.list_(pa.float64())), "expected types",
    ),
    "ids that are words": (
        "train", lambda t: column(t, "token_ids", [["one"]] * ROWS, pa.list_(WORDS)), "expected types",
    ),
    "ids that are one number": ("train", lambda t: column(t, "token_ids", [1] * ROWS, pa.int32()), "expected types"),
    "ids in ids": ("train", lambda t: column(t, "token_ids", [[[1]]] * ROWS, pa.list_(IDS)), "expected types"),
    "names that are lists": ("train", lambda t: column(t, "id", [["a"]] * ROWS, pa.list_(WORDS)), "expected types"),
    "names that are bytes": (
        "train", lambda t: column(t, "id", [b"\xff" + bytes([n]) for n in range(ROWS)], pa.binary()), "expected types",
    ),
    "null text": ("train", lambda t: rows(t, 2, "text", None), "row 2", "'text' is missing"),
    "null facts": ("train", lambda t: rows(t, 2, "facts", None), "row 2", "'facts' is missing"),
    "a fact of nothing": ("train", lambda t: rows(t, 2, "facts", [("answer", None)]), "row 2", "no value for 'answer'"),
    "a fact twice": (
        "train", lambda t: rows(t, 2, "facts", [("answer", "a"), ("answer", "b")]), "row 2", "'answer' twice",
    ),
    "facts that are words": ("train", lambda t: column(t, "facts", ["answer"] * ROWS, WORDS), "expected types"),
    "facts that are a struct": (
        "train", lambda t: column(t, "facts", [{"a": "b"}] * ROWS, pa.struct({"a": WORDS})), "expected types",
    ),
    "a prompt too long": (
        "train", lambda t: rows(t, 4, "token_ids", [5] * 150), "model.max_model_len: 192", "150 tokens",
    ),
    "evaluation without ids": ("held_out", lambda t: t.drop_columns(["token_ids"]), "held_out.parquet has no column"),
    "evaluation with a name twice": ("held_out", lambda t: rows(t, 9, "id", t["id"][0].as_py()), "row 9", "row 1"),
    "evaluation without rows": ("held_out", lambda t: t.slice(0, 0), "held_out.parquet has no rows"),
    "demonstrations without replies": (
        "demonstrations", lambda t: t.drop_columns(["reply_ids"]), "has no column 'reply_ids'",
    ),
    "demonstrations without rows": ("demonstrations", lambda t: t.slice(0, 0), "demonstrations.parquet has no rows"),
    "a null reply": ("demonstrations", lambda t: rows(t, 7, "reply_ids", None), "row 7", "'reply_ids' is missing"),
    "an empty reply": ("demonstrations", lambda t: rows(t, 7, "reply_ids", []), "row 7", "'reply_ids' is empty"),
    "a reply of foreign ids": ("demonstrations", lambda t: rows(t, 7, "reply_ids", [9999]), "row 7", "id 9999"),
    "a reply of padding": ("demonstrations", lambda t: rows(t, 7, "reply_ids", [0, 0]), "row 7", "grammar of family"),
    "a reply without an end": (
        "demonstrations", lambda t: rows(t, 7, "reply_ids", t["reply_ids"][6].as_py()[:-1]), "row 7", "has no end",
    ),
    "a reply after its end": (
        "demonstrations", lambda t: rows(t, 7, "reply_ids", t["reply_ids"][6].as_py() * 2), "row 7", "nothing more",
    ),
    "a reply too long": (
        "demonstrations", lambda t: rows(t, 7, "reply_ids", [5] * 500), "row 7", "model.max_model_len",
    ),
    "prompts for demonstrations": (
        "demonstrations", lambda t: t.rename_columns(["id", *t.column_names[1:]]), "'prompt_id'",
    ),
}  # fmt: skip
"""By name: a data file of the setup, what becomes of its table, and what the error must mention."""


@pytest.mark.parametrize("name", CASES)
def test_tables(setup: Setup, name: str):
    file, change, *mentions = CASES[name]
    pq.write_table(change(setup.table(file)), setup.data(file))
    refused(setup.folder, setup.enter, *mentions)


FILES = {
    "nothing": lambda content: b"",
    "four bytes": lambda content: b"PAR1",
    "words": lambda content: b"id,token_ids\na,1\n",
    "zeros": lambda content: bytes(5000),
    "the first half": lambda content: content[: len(content) // 2],
    "the second half": lambda content: content[len(content) // 2 :],
    "all but the last byte": lambda content: content[:-1],
    "a wrong length of the footer": lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1",
    "a footer of zeros": lambda content: content[:-200] + bytes(192) + content[-8:],
    "an Arrow file": lambda content: b"ARROW1\0\0" + content,
    "zip": lambda content: b"PK\x03\x04" + content,
}
"""By name: what became of the bytes of a data file."""


@pytest.mark.parametrize("name", FILES)
def test_files(setup: Setup, name: str):
    path = setup.data("demonstrations")
    path.write_bytes(FILES[name](path.read_bytes()))
    refused(setup.folder, setup.enter, "demonstrations.parquet is not a Parquet file")


def test_a_column_in_the_name_of_a_folder_is_none(setup):
    """Parquet readers make columns of "key=value" in a path."""
    folder = setup.folder / "id=5" / "text=x"
    folder.mkdir(parents=True)
    moved = setup.data("train").rename(folder / "train.parquet")
    inputs = setup.enter(f"data.prompts={moved}")
    assert inputs.prompts[0].id == setup.table("train")["id"][0].as_py()


def test_the_setup_itself_is_good(setup):
    inputs = setup.enter()
    assert (len(inputs.prompts), len(inputs.demonstrations), len(inputs.held_out["held_out"])) == (ROWS,) * 3
