"""Data are not held in memory: what it takes to open and walk many rows stays below what their records would take."""

import pytest

from tests.preparing import memory

ROWS, BOUND = 200_000, 200
"""MiB. 64 of them are the row groups that are kept (`speech.shards.KEPT`), the rest what Arrow and NumPy work with."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    memory.write(folder, ROWS, memory._vocabulary())
    return folder


@pytest.mark.parametrize("way", ["walk", "prepared", "scan", "dialogues"])
def test_rows_stay_on_disk(rows, way):
    if way == "prepared":
        memory.describe(rows)
    found = memory.measured(way, rows, 5000)
    assert found["rows"] == (5000 if way in ("walk", "prepared") else ROWS)
    assert found["mib"] < BOUND


def test_the_bound_is_one_that_rows_in_memory_break(rows):
    assert memory.measured("hold", rows, 0)["mib"] > BOUND
