"""Frozen parameters are named and checked (method §7, rule 7)."""

import pytest
from torch import nn

from common.errors import InputError
from learner.parameter_filter import freeze, frozen_names

NAMES = ["embed.weight", "layers.0.weight", "layers.1.weight", "head.weight"]


def test_patterns_name_parameters():
    assert frozen_names(NAMES, ["layers.*", "embed.weight"]) == {"layers.0.weight", "layers.1.weight", "embed.weight"}
    assert frozen_names(NAMES, []) == set()


def test_a_pattern_that_matches_nothing_is_an_error():
    """Method §7, rule 7."""
    with pytest.raises(
        InputError, match=r"model.freeze: 'encoder\.\*' matches no parameter; the model has embed.weight"
    ):
        frozen_names(NAMES, ["layers.*", "encoder.*"])
    with pytest.raises(InputError, match="nothing is left to train"):
        frozen_names(NAMES, ["*"])


def test_frozen_parameters_get_no_gradient():
    """Method §7, rule 7."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    assert freeze(model, ["0.*"]) == 2
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_freezing_a_tied_parameter_under_one_name_leaves_nothing_under_the_other():
    """Method §7, rule 7: the error appears under either name."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(InputError, match="nothing is left to train"):
        freeze(model, ["0.*"])
