"""λ against the authors' numbers and against its own rules."""

import json

import pytest

from controller.mix_ratio import MixRatio, MixRatioConfig, MixRatioState, gates

SETTINGS = dict(
    schedule="adaptive",
    value=0.5,
    warmup_steps=0,
    max=0.8,
    gate_slope=5.0,
    gate_threshold=3.0,
    score_min=1.0,
    score_max=5.0,
    ema_decay=0.9,
    initial=None,
    per_group=False,
)


def settings(**changes) -> MixRatioConfig:
    return MixRatioConfig(**(SETTINGS | changes))


@pytest.mark.reference
def test_equals_the_authors_numbers(reference):
    for case in reference("lambda.json"):
        reading = MixRatio(settings(initial=case["state"])).update([case["rewards"]])
        assert reading.mix == pytest.approx(case["lambda"], abs=1e-5), case
        assert reading.raw == pytest.approx(case["lambda_raw"], abs=1e-5), case
        assert reading.gate_quality == pytest.approx(case["reward_gate"], abs=1e-5), case
        assert reading.gate_information == pytest.approx(case["info_gate"], abs=1e-5), case


@pytest.mark.parametrize(
    ("scores", "raw"), [([1, 2, 3, 5], 0.437), ([3, 4, 4, 3], 0.050), ([1, 1, 2, 2], 0.0003), ([4] * 4, 0.0)]
)
def test_worked_values_of_the_method(scores, raw):
    assert MixRatio(settings()).update([scores]).raw == pytest.approx(raw, abs=5e-4)


def test_one_update_for_all_groups_of_an_iteration():
    ratio = MixRatio(settings())
    first = ratio.update([[1, 5, 1, 5], [4, 4, 4, 4]])
    assert first.mix == pytest.approx(0.4, abs=1e-3)
    second = ratio.update([[4, 4, 4, 4]])
    assert second.mix == pytest.approx(0.9 * first.mix)


def test_groups_with_fewer_than_two_scores_measure_nothing():
    """Method §7, rule 1: they pull λ neither down nor up."""
    ratio = MixRatio(settings(initial=0.3))
    assert ratio.update([[5.0], []]).mix == pytest.approx(0.3)
    assert ratio.update([[1, 5, 1, 5], [5.0]]).gate_information == pytest.approx(1.0)


def test_a_first_iteration_without_scores_is_not_the_first_value():
    ratio = MixRatio(settings())
    nothing = ratio.update([])
    assert (nothing.mix, nothing.raw, nothing.gate_quality) == (0.0, None, None)
    assert ratio.update([[1, 2, 3, 5]]).mix == pytest.approx(0.437, abs=1e-3)


def test_fixed_mode_measures_but_does_not_follow():
    reading = MixRatio(settings(schedule="fixed", value=0.3)).update([[1, 5, 1, 5]])
    assert reading.mix == 0.3
    assert reading.raw == pytest.approx(0.8, abs=1e-3)


def test_no_smoothing_is_the_raw_value():
    ratio = MixRatio(settings(ema_decay=0.0, initial=0.7))
    assert ratio.update([[1, 2, 3, 5]]).mix == pytest.approx(0.437, abs=1e-3)


def test_the_scale_decides_the_largest_variance():
    assert gates([0.0, 1.0], settings(score_min=0.0, score_max=1.0))[1] == pytest.approx(1.0)


def test_two_stages_are_the_anchor_alone_and_then_a_fixed_mix():
    ratio = MixRatio(settings(schedule="two_stage", warmup_steps=2, value=1.0))
    assert [ratio.update([[1, 5]]).mix for _ in range(4)] == [0.0, 0.0, 1.0, 1.0]


def test_each_group_by_its_own_lambda_and_the_job_by_their_mean():
    groups = [[1, 5, 1, 5], [5.0], [4, 4, 4, 4], [1, 2, 3, 5]]
    reading = MixRatio(settings(per_group=True, ema_decay=0.0)).update(groups)
    own = [reading.mix * share for share in reading.shares]
    assert own[0] == pytest.approx(0.8, abs=1e-3)
    assert own[2] == pytest.approx(0.0)
    assert own[3] == pytest.approx(0.437, abs=1e-3)
    assert reading.mix == pytest.approx((own[0] + own[2] + own[3]) / 3)
    smoothed = MixRatio(settings(per_group=True, initial=0.3)).update(groups)
    assert smoothed.mix * smoothed.shares[2] == pytest.approx(0.27)
    assert MixRatio(settings()).update(groups).shares == [1.0] * 4


def test_an_override_holds_until_it_is_taken_back_and_measuring_goes_on():
    ratio, alone = MixRatio(settings()), MixRatio(settings())
    for fixed in (None, 0.3, 0.3, None):
        ratio.override("adaptive" if fixed is None else fixed)
        expected, reading = alone.update([[1, 2, 3, 5]]), ratio.update([[1, 2, 3, 5]])
        assert reading.mix == (expected.mix if fixed is None else fixed)
        assert reading.overridden == (fixed is not None)
        assert reading.raw == expected.raw
    fixed = MixRatio(settings(schedule="fixed"))
    fixed.override("adaptive")
    assert fixed.update([[1, 2, 3, 5]]).mix == pytest.approx(0.437, abs=1e-3)
    for impossible in (1.5, "sometimes"):
        with pytest.raises(ValueError, match=str(impossible)):
            ratio.override(impossible)


def test_a_resumed_lambda_goes_on_where_it_was():
    whole, first = (
        MixRatio(settings(schedule="two_stage", warmup_steps=3)),
        MixRatio(settings(schedule="two_stage", warmup_steps=3)),
    )
    for scores in ([1, 5], [2, 5], [1, 3]):
        whole.update([scores])
        first.update([scores])
    first.override(0.2)
    again = MixRatio(
        settings(schedule="two_stage", warmup_steps=3), MixRatioState(**json.loads(json.dumps(vars(first.state))))
    )
    assert again.update([[4, 5]]).mix == 0.2
    again.override("two_stage")
    whole.update([[4, 5]])
    assert vars(again.state) == vars(whole.state)
    assert again.update([[1, 5]]).mix == whole.update([[1, 5]]).mix == 0.5


@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        {"kind": "mix"},
        {"kind": "x", "value": 1},
        *({"kind": "mix", "value": value} for value in (None, True, 30, "often", float("nan"))),
    ],
)
def test_a_request_that_makes_no_sense_changes_nothing(request_):
    ratio = MixRatio(settings())
    with pytest.raises(ValueError, match=r"λ = |no request|unknown mode"):
        ratio.obey(request_)
    assert ratio.state.override is None
    assert ratio.obey({"kind": "mix", "value": 0.3}) == ratio.state.override == 0.3


def test_a_steep_gate_does_not_overflow():
    assert gates([1.0, 1.0], settings(gate_slope=4000.0))[0] == 0.0
    assert gates([5.0, 1.0], settings(gate_slope=4000.0))[0] == 1.0
