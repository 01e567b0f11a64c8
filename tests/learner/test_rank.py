"""A learner rank with the real DeepSpeed engine, by itself and without Ray."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def two_steps(root, world):
    """What `one_rank.py` found."""

    def take(stage: int, *frozen: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "tests.learner.one_rank", str(world / "base"), str(stage), *frozen],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return take


@pytest.mark.parametrize("stage", [0, 2])
def test_what_is_frozen_stays_and_what_is_scored_is_what_was_drawn(two_steps, stage):
    """Method §7, rule 7: not a bit of them changes, by weight decay neither; all others learn.

    And rule 3: at the sampler's temperature and under its mask, the learner computes what the sampler reported.
    And rule 8: the output layers see no other token than those with a loss.
    """
    found = two_steps(stage, "model.layers.0.*", "model.embed_tokens.weight")
    assert found["unchanged"]
    assert all(name.startswith(("model.layers.0.", "model.embed_tokens.")) for name in found["unchanged"])
    assert not any(name.startswith(("model.layers.0.", "model.embed_tokens.")) for name in found["changed"])
    assert "lm_head.weight" in found["changed"]
    assert found["gap"] < 1e-4
    assert found["output_rows"] == dict.fromkeys(("policy", "start model"), found["tokens_with_loss"])


def test_a_pattern_that_matches_nothing_stops_the_rank(two_steps):
    """Method §7, rule 7."""
    assert "'encoder.*' matches no parameter" in two_steps(0, "encoder.*")["refused"]
