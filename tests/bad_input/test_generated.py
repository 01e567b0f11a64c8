"""Valid input with random changes: it is rejected in one sentence, or read correctly."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from configs.load import load_config, load_resolved_config
from configs.validate import parse_value
from data.records import read_demonstrations, read_prompts
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.bad_input.door import refused_or_read
from tests.configs.keys import CHOICES, NUMBERS

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of a test; each writes its file anew."""
    return tmp_path_factory.mktemp("generated")


def check_ids(ids: np.ndarray, vocabulary: Vocabulary) -> None:
    assert ids.dtype == np.int32
    assert len(ids) > 0
    assert ((ids >= 0) & (ids < vocabulary.size)).all()


def check_prompts(prompts, rows: int | None, vocabulary: Vocabulary) -> None:
    """Check that every row was read, under distinct names."""
    if prompts is None:
        return
    assert rows is None or len(prompts) == rows
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        check_ids(prompt.token_ids, vocabulary)
        assert all(type(key) is type(value) is str for key, value in prompt.facts.items())


IDS = st.lists(st.none() | st.integers(-3, 600) | st.integers(-(2**63), 2**63 - 1), max_size=4)
CELLS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=6)
    | st.binary(max_size=6) | IDS | st.lists(st.floats(), max_size=3) | st.lists(st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2) | st.dates() | st.decimals(allow_nan=False)
)  # fmt: skip
PROMPT = {"id": "a", "token_ids": [1, 2], "text": "one", "facts": {"answer": "one"}}


@given(column=st.sampled_from([*PROMPT, "other"]), values=st.lists(CELLS, min_size=1, max_size=4))
@example(column="id", values=["a", "a"])
@example(column="token_ids", values=[[1], []])
def test_any_column_of_prompts(folder, vocabulary, column, values):
    columns = {name: [value] * len(values) for name, value in PROMPT.items()} | {
        "id": [str(n) for n in range(len(values))],
        "facts": pa.array([[("answer", "one")]] * len(values), pa.map_(pa.string(), pa.string())),
        column: values,
    }
    try:
        table = pa.table(columns)
        pq.write_table(table, folder / "prompts.parquet")
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        assume(False)  # no such column can be written
    found = refused_or_read(folder, lambda: read_prompts(folder / "prompts.parquet", vocabulary))
    check_prompts(found, len(values), vocabulary)


@given(kind=st.sampled_from([pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.string()]), ids=IDS)
def test_any_type_of_ids(folder, vocabulary, kind, ids):
    try:
        values = pa.array([ids, [1]], pa.list_(kind))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        assume(False)
    columns = PROMPT | {"id": ["a", "b"], "text": ["", ""], "token_ids": values}
    columns["facts"] = pa.array([[], []], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table(columns), folder / "ids.parquet")
    found = refused_or_read(folder, lambda: read_prompts(folder / "ids.parquet", vocabulary))
    check_prompts(found, 2, vocabulary)
    if found:
        assert found[0].token_ids.tolist() == [int(number) for number in ids]


@given(cut=st.integers(0, 10**6), at=st.integers(0, 10**6), content=st.binary(max_size=8))
@example(cut=0, at=4, content=b"\xff" * 8)
def test_any_damage_to_the_bytes_of_a_file(folder, vocabulary, world, cut, at, content):
    """A truncated file, or one with a few other bytes somewhere."""
    path = folder / "damaged.parquet"
    pq.write_table(pq.read_table(world / "data/demonstrations.parquet").slice(0, 8), path, compression="none")
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    found = refused_or_read(folder, lambda: read_demonstrations(path, vocabulary))
    for demonstration in found or []:
        check_ids(demonstration.prompt_ids, vocabulary)
        check_ids(demonstration.reply_ids, vocabulary)
        demonstration.text.encode()
    path.write_bytes(whole[: cut % len(whole)])
    assert refused_or_read(folder, lambda: read_demonstrations(path, vocabulary)) is None


SETTINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-2, 2) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["", "???", "${run.seed}", "${run}", "1e400", "-0x1", "1:30", "~", "<<", "*a", "&a", "\0"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4) | st.integers() | st.sampled_from(["name", "target"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from([*NUMBERS, *CHOICES]) | st.sampled_from(
    """run.name run.directory run model model.freeze model.family data.validation data.prompts reward reward.functions
    reward.weights reward.composites reward.codec reward.codec.target reward.codec.kwargs reward.audio_quality_fn
    algorithm.score_routing
    algorithm.dpo.tie_breakers algorithm.dpo.score algorithm.dpo.pairs_file metrics.host cluster.address learner.betas
    extends nothing""".split()
)


def check_config(config) -> None:
    """Check that every number is in its range, and every word among its choices."""
    for key, (low, high) in NUMBERS.items():
        values = parse_value(config, key)
        for value in values if isinstance(values, list | tuple) else [values]:
            assert value is None or low <= value <= high
            assert value is None or math.isfinite(value)
    for key, allowed in CHOICES.items():
        assert parse_value(config, key) in allowed
    assert config.model_dump()


@given(key=KEYS, value=SETTINGS)
@example(key="learner.betas", value=[0.9, 10**400])
@example(key="reward.functions", value=[{"name": "answer", "target": "a:B"}, None])
@example(key="algorithm.score_routing", value=[{"score": ["total"]}])
@example(key="data.validation", value={"a": None})
def test_any_value_of_any_key(folder, root, key, value):
    tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    path = folder / "value.yaml"
    path.write_text(yaml.safe_dump({"extends": str(root / "configs/playground.yaml")} | tree, allow_unicode=True))
    config = refused_or_read(folder, lambda: load_config(path, []))
    if config is not None:
        check_config(config)
        config.yaml()


@given(key=KEYS, value=st.text(max_size=12) | st.sampled_from(["[", "{a: ", "!!int x", "&a [*a]", ".inf", "\t", "'"]))
def test_any_override(folder, root, key, value):
    config = refused_or_read(folder, lambda: load_config(root / "configs/playground.yaml", [f"{key}={value}"]))
    if config is not None:
        check_config(config)


@given(
    content=st.binary(max_size=60) | st.text(alphabet="ab:{}[]&*!-'\"\n\t ,#?|>%@`<\\0.~", max_size=60).map(str.encode)
)
def test_any_file(folder, content):
    path = folder / "any.yaml"
    path.write_bytes(content)
    refused_or_read(folder, lambda: load_resolved_config(path))
    assert refused_or_read(folder, lambda: load_config(path, [])) is None
