"""`make chaos` in small: a real run that is hurt, comes through, and is whole."""

import subprocess
import sys

import pytest

from tests.chaos.schedule import FULL, KINDS, schedule
from tests.chaos.soak import judge
from tests.chaos.storm import own_mounts


def test_every_kind_of_process_dies_at_least_twice_in_the_whole_of_it():
    assert set(FULL) == set(KINDS)
    assert all(FULL.count(kind) >= 2 for kind in ("rollout", "engine", "reward", "learner", "controller"))


def test_a_seed_decides_the_faults():
    assert schedule(FULL, 40, 1) == schedule(FULL, 40, 1)
    assert schedule(FULL, 40, 1) != schedule(FULL, 40, 2)
    faults = schedule(FULL, 40, 3)
    assert sorted(fault.kind for fault in faults) == sorted(FULL)
    assert [fault.iteration for fault in faults] == sorted(fault.iteration for fault in faults)
    assert faults[0].iteration >= 1
    assert faults[-1].iteration <= 38


def test_who_grows_in_a_soak_is_named():
    growing = {"leaking": (500.0, 0.5), "flat": (500.0, 0.0), "small": (17.0, 0.016), "filling up": (500.0, 0.2)}
    samples = {name: [(i, first + each * i) for i in range(1, 201)] for name, (first, each) in growing.items()}
    samples["burst"] = [(i, 900.0 if i == 150 else 500.0) for i in range(1, 201)]
    samples["gone"] = [(i, 100.0 * i) for i in range(1, 50)]
    table, leaking = judge(samples, 200)
    assert leaking == ["leaking"]
    assert "| leaking | 510 | 550 | 600 | +8.7% |" in table
    assert "gone" not in table


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_run_that_is_hurt_comes_through_whole(root, tmp_path):
    kinds = ["rollout", "learner", "judge-wrong", "reward", "driver"]
    if own_mounts():  # elsewhere no small disk can be made; what follows from a full one is in test_checkpoints.py
        kinds.append("disk")
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.chaos", "--seed", "5", "--iterations", "9", "--kinds", ",".join(kinds),
            "--in-process", "--out", str(tmp_path / "chaos"),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "nothing is wrong with the records" in done.stdout
    for kind in kinds:
        assert KINDS[kind] in done.stdout
