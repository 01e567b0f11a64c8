"""Data are not held in memory: what it takes to open and walk many rows stays below what their records would take."""

import pytest

from tests.data.prepare import memory

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("memory of rows")]
ROWS, BOUND = 200_000, 200
"""Prompts, and MiB. 64 of them are the row groups that are kept (`data.dataset.KEPT`), the rest what Arrow and NumPy
work with."""
LINES, NARROW = 16_000, 8
"""Dialogues, of which one is in memory at a time."""

PICKS = 2000
"""Prompts that are picked in random order: more than there are row groups."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    memory.write(folder, ROWS, memory._vocabulary(), LINES)
    return folder


@pytest.mark.parametrize(
    ("way", "seen", "bound"),
    [("walk", PICKS, BOUND), ("prepared", PICKS, BOUND), ("scan", ROWS, BOUND), ("dialogues", LINES, NARROW)],
)
def test_rows_stay_on_disk(rows, way, seen, bound):
    if way == "prepared":
        memory.describe(rows)
    found = memory.measured(way, rows, PICKS)
    assert found["rows"] == seen
    assert found["mib"] < bound


@pytest.mark.parametrize(("way", "bound"), [("hold", BOUND), ("hold dialogues", NARROW)])
def test_the_bounds_are_those_that_rows_in_memory_break(rows, way, bound):
    assert memory.measured(way, rows, 0)["mib"] > bound
