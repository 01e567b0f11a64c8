"""One learner rank with the real DeepSpeed engine, without Ray."""

import pytest

from tests.learner.one_rank import two_steps
from tests.learner.processes import run

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("learner rank")]


@pytest.mark.parametrize("stage", [0, 2])
def test_what_is_frozen_stays_and_what_is_scored_is_what_was_drawn(world, stage):
    """Method §7, rule 7: frozen parameters do not change by a bit, not even by weight decay; all others do.

    Method §7, rule 3: at the sampler's temperature and mask, the learner computes what the sampler reported.
    Method §7, rule 8: the output layers see only tokens with a loss.
    """
    frozen = ("model.layers.0.*", "model.embed_tokens.weight")
    [found] = run(two_steps, world / "base", stage, frozen, ranks=1)
    assert found["unchanged"]
    assert all(name.startswith(("model.layers.0.", "model.embed_tokens.")) for name in found["unchanged"])
    assert not any(name.startswith(("model.layers.0.", "model.embed_tokens.")) for name in found["changed"])
    assert "lm_head.weight" in found["changed"]
    assert found["gap"] < 1e-4
    assert found["output_rows"] == dict.fromkeys(("policy", "start model"), found["tokens_with_loss"])


def test_a_pattern_that_matches_nothing_stops_the_rank(world):
    """Method §7, rule 7."""
    [found] = run(two_steps, world / "base", 0, ("encoder.*",), ranks=1)
    assert "'encoder.*' matches no parameter" in found["refused"]
