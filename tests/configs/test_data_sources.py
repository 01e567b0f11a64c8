"""Data sources of a configuration, and the inputs read from them."""

import shutil

import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from configs.load import load_config, make_absolute
from configs.validate import data_paths, data_sources, source_name
from controller.inputs import build_samplers, fingerprints, read_inputs
from controller.resuming import changed_settings
from tests.conftest import ROOT

CONFIG = ROOT / "configs/playground.yaml"


@pytest.fixture
def data(world, tmp_path):
    """The training set in two halves: a file and a folder."""
    table = pq.read_table(world / "data/train.parquet")
    pq.write_table(table.slice(0, 2000), tmp_path / "a.parquet", row_group_size=128)
    (tmp_path / "b").mkdir()
    pq.write_table(table.slice(2000), tmp_path / "b/0.parquet")
    return tmp_path


def two(data, first=3, second=1) -> str:
    return f"[{{path: {data}/a.parquet, weight: {first}}}, {{path: {data}/b, weight: {second}}}]"


def test_several_sources_are_mixed_by_weight(data, world, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, [f"data.prompts={two(data)}"])
    inputs = read_inputs(config)
    assert inputs.prompts.counts == [2000, 560]
    prompts, demonstrations = build_samplers(config, inputs)
    taken = prompts.take(16)
    assert sum(row < 2000 for row in taken) == 12
    assert demonstrations.take(16) == build_samplers(load_config(CONFIG, []), inputs)[1].take(16)
    alone = read_inputs(load_config(CONFIG, []))
    marks, whole = fingerprints(inputs), fingerprints(alone)
    assert marks["data.prompts"] != whole["data.prompts"]
    assert marks["data.sft"] == whole["data.sft"]


def test_changed_weights_are_a_changed_setting(data):
    one, other = (load_config(CONFIG, [f"data.prompts={two(data, weight)}"]) for weight in (3, 4))
    assert list(changed_settings(one, other)) == ["data.prompts"]


def test_paths_become_absolute_in_both_forms(data, monkeypatch):
    monkeypatch.chdir(data)
    config = load_config(CONFIG, ["data.prompts=[{path: a.parquet}, {path: b, weight: 2}]", "data.sft=d.parquet"])
    make_absolute(config)
    assert data_paths(config.data.prompts) == [data / "a.parquet", data / "b"]
    assert [source.weight for source in data_sources(config.data.prompts)] == [1.0, 2]
    assert config.data.sft == str(data / "d.parquet")
    assert source_name(config.data.prompts) == f"{data / 'a.parquet'}, {data / 'b'}"
    again = data / "again.yaml"
    again.write_text(config.yaml())
    assert load_config(again, []) == config


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("[]", r"data\.prompts: \[\] is not a source; give a path, or a list"),
        ("5", r"data\.prompts: 5 is not a source"),
        ("{path: a}", r"data\.prompts: .*is not a source"),
        ("[a]", r"data\.prompts\[0\]: 'a' is not a source"),
        ("[{path: a, wieght: 2}]", r"data\.prompts\[0\]: .*wieght"),
        ("[{path: a}, {weight: 1}]", r"data\.prompts\[1\]"),
        ("[{path: 5}]", r"data\.prompts\[0\]\.path: 5 cannot be"),
        ("[{path: ''}]", r"data\.prompts\[0\]\.path: '' cannot be"),
        ("[{path: a, weight: 0}]", r"data\.prompts\[0\]\.weight: 0 is not allowed"),
        ("[{path: a, weight: -1}]", r"data\.prompts\[0\]\.weight: -1"),
        ("[{path: a, weight: .nan}]", r"data\.prompts\[0\]\.weight: nan"),
        ("[{path: a, weight: true}]", r"data\.prompts\[0\]\.weight: True"),
        ("[{path: a}, {path: a}]", r"data\.prompts: two sources have the same path"),
    ],
)
def test_invalid_sources_are_rejected_by_key(value, complaint):
    with pytest.raises(InputError, match=complaint):
        load_config(CONFIG, [f"data.prompts={value}"])


def test_a_broken_file_among_several_is_named(data, world, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copy(world / "data/demonstrations.parquet", data / "b/1.parquet")
    with pytest.raises(InputError, match=r"b/1\.parquet has no column 'id'"):
        read_inputs(load_config(CONFIG, [f"data.prompts={two(data)}"]))
