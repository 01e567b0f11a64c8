"""Numbers of `duet diagnose` on examples derived by hand."""

import io

import numpy as np
import pytest
from rich.console import Console

from controller.mix_ratio import MixRatioConfig, gates
from evaluation.diagnosis.gradient_geometry import GradientBatch
from evaluation.diagnosis.gradients import anchor_weights, preference_weights
from evaluation.diagnosis.logprob_shift import describe_shift, shifts
from evaluation.diagnosis.mix_ratio import decompose, gate_ends, measure_gates
from evaluation.diagnosis.page import Section, Table, markdown, summary
from evaluation.diagnosis.rater_agreement import agreement, variance_section
from evaluation.diagnosis.run_data import DiagnosisItem, ScoredGroup
from speech.grammar import TokenKind
from speech.vocabulary import Channel

NAN = float("nan")
TEXT, SPEECH, BOUNDARY = Channel.TEXT, Channel.SPEECH, Channel.BOUNDARY


@pytest.fixture(scope="module")
def settings() -> MixRatioConfig:
    return MixRatioConfig(score_min=1.0, score_max=5.0)


def group(iteration: int = 1, **scores: list[float]) -> ScoredGroup:
    arrays = {name: np.array(values, dtype=np.float64) for name, values in scores.items()}
    return ScoredGroup(iteration=iteration, prompt_id="p", scores=arrays)


def item(
    channels: list[int], number: int = 0, total: float | None = None, allowed: list[int] | None = None
) -> DiagnosisItem:
    ids = np.arange(len(channels), dtype=np.int32)
    sets = None if allowed is None else np.array(allowed, dtype=np.int8)
    return DiagnosisItem(
        passage=GradientBatch(prompt_ids=ids[:1], reply_ids=ids, allowed=sets),
        channels=np.array(channels, dtype=np.int8),
        group=number,
        total=total,
    )


# ---- weights of the losses


def test_preference_weights_are_advantages_over_tokens_replies_and_groups():
    items = [
        item([TEXT, BOUNDARY, SPEECH, TEXT], 0, 5.0),
        item([TEXT, SPEECH], 0, 1.0),
        item([TEXT, TEXT], 0, None),
        item([TEXT, SPEECH], 1, 3.0),
        item([TEXT, SPEECH], 2, 1.0),
        item([TEXT], 2, 3.0),
    ]
    found = preference_weights(items, "speech")
    # Group 0: mean 3, deviation 2. Group 1 has one total and does not count: two groups of two replies each.
    strength = 2.0 / (2.0 + 1e-4) / (2 * 2)
    np.testing.assert_allclose(found["text even"][0], [strength / 2, 0, 0, strength / 2])
    np.testing.assert_allclose(found["speech even"][0], [0, strength / 2, strength / 2, 0])
    np.testing.assert_allclose(found["text even"][1], [-strength, 0])
    assert not any(weights[index].any() for weights in found.values() for index in (2, 3))
    np.testing.assert_allclose(found["text odd"][5], [1.0 / (1.0 + 1e-4) / 4])
    assert not found["speech odd"][5].any()
    assert not any(found[f"{channel} odd"][0].any() for channel in ("text", "speech"))
    np.testing.assert_allclose(preference_weights(items, "text")["text even"][0][:2], [strength / 3, strength / 3])


def test_anchor_weights_of_both_channels_add_up_to_the_mean_over_rows():
    items = [item([TEXT, SPEECH, SPEECH]), item([TEXT, BOUNDARY])]
    found = anchor_weights(items, "speech", {"text": 2.0, "speech": 1.0})
    np.testing.assert_allclose(found["text even"][0], [2 / 4 / 2, 0, 0])
    np.testing.assert_allclose(found["speech even"][0], [0, 1 / 4 / 2, 1 / 4 / 2])
    np.testing.assert_allclose(found["speech odd"][1], [0, 1 / 3 / 2])
    assert sum(w.sum() for weights in found.values() for w in weights) == pytest.approx(1.0)


# ---- Δlogp


def test_shift_is_by_channel_and_leaves_forced_tokens_out():
    kinds = np.array(
        [TokenKind.TEXT, TokenKind.TEXT, TokenKind.SPEECH, TokenKind.SPEECH, TokenKind.BEGIN], dtype=np.int8
    )
    one = item([TEXT, BOUNDARY, SPEECH], allowed=[TokenKind.TEXT, TokenKind.BEGIN, TokenKind.SPEECH])
    two = item([TEXT, TEXT])
    before = [np.array([-1.0, 0.0, -2.0], np.float32), np.array([-1.0, -1.0], np.float32)]
    after = [np.array([-0.5, 0.0, -3.0], np.float32), np.array([-2.0, -1.0], np.float32)]
    found = {s.channel: s for s in shifts("x", [one, two], before, after, kinds)}
    assert found["text"].values.tolist() == [0.5, -1.0, 0.0]
    assert found["speech"].values.tolist() == [-1.0]
    assert (found["boundary"].values.tolist(), found["boundary"].forced) == ([], 1)


def test_coherence_and_locality_of_a_shift():
    found = describe_shift(np.array([0.1, 0.2, 0.00001, -0.1, 0.8]))
    assert found["mean"] == pytest.approx(0.2, abs=1e-5)
    assert found["absolute"] == pytest.approx(0.24, abs=1e-5)
    assert found["moved"] == pytest.approx(4 / 5)
    assert found["same_direction"] == pytest.approx(3 / 4)
    assert found["coherence"] == pytest.approx(0.2 / np.std([0.1, 0.2, 0.0, -0.1, 0.8]), abs=1e-4)
    assert found["local"] == pytest.approx(0.8 / 1.2, abs=1e-4)
    assert found["q0.5"] == pytest.approx(0.1)
    still = describe_shift(np.zeros(4))
    assert (still["mean"], still["same_direction"], still["coherence"], still["local"]) == (0.0, None, None, None)
    assert set(describe_shift(np.empty(0)).values()) == {None}


# ---- scores


def test_agreement_counts_constant_groups_and_does_not_score_them():
    groups = [
        group(rater=[1, 2, 3, 4], total=[1, 2, 3, 4]),
        group(rater=[1, 1, 2, 3], total=[3, 2, 2, 1]),
        group(rater=[2, 2, 2, 2], total=[1, 2, 3, 4]),
        group(rater=[1, 2, 3, 4], total=[5, 5, 5, 5]),
        group(rater=[1, 1, 1, 1], total=[5, 5, 5, 5]),
        group(rater=[1, NAN, NAN, NAN], total=[1, 2, 3, 4]),
        group(rater=[1, 2, NAN, NAN], total=[NAN, 2, 3, 4]),
    ]
    found = agreement(groups, "rater", "total")
    assert found.groups == 2
    assert found.unused == {
        "rater constant": 1,
        "reference constant": 1,
        "both constant": 1,
        "fewer than two replies with both scores": 2,
    }
    # Second group: ranks 1.5 1.5 3 4 against 4 2.5 2.5 1. τ-b: 4 of its 6 pairs are discordant, none concordant, one
    # is tied in either: −4 / √(5 · 5).
    rho = np.corrcoef([1.5, 1.5, 3, 4], [4, 2.5, 2.5, 1])[0, 1]
    assert found.spearman == pytest.approx((1.0 + rho) / 2)
    assert found.kendall == pytest.approx((1.0 - 4 / 5) / 2)
    # Two values: the standard error of the mean is half their distance; t(0.975, 1 degree of freedom) = 12.706.
    assert found.spearman_margin == pytest.approx(12.706 * (1.0 - rho) / 2, rel=1e-4)
    alone = agreement(groups[:1], "rater", "total")
    assert (alone.spearman, alone.spearman_margin) == (pytest.approx(1.0), None)
    nothing = agreement(groups[2:], "rater", "total")
    assert (nothing.spearman, nothing.kendall, nothing.groups) == (None, None, 0)


def test_variance_is_within_groups_and_of_the_scores_that_exist(settings):
    groups = [
        group(1, rater=[1, 5, NAN], total=[2, 2, 2]),
        group(1, rater=[4, 4, 4], total=[1, 3, 5]),
        group(2, rater=[NAN, NAN, 3], total=[NAN, NAN, NAN]),
    ]
    section = variance_section(groups, settings)
    rows = {row["rater"]: row for row in section.table("variance").rows}
    assert rows["rater"]["variance"] == pytest.approx(2.0)
    assert (rows["rater"]["constant"], rows["rater"]["groups"], rows["rater"]["unscored"]) == (0.5, 2, 1)
    assert rows["rater"]["open"] == pytest.approx(0.8 * (1.0 + 0.0) / 2)
    g, v = gates([1, 3, 5], settings)
    assert rows["total"]["alone"] == pytest.approx(0.8 * g * v / 2)
    second = [row for row in section.table("variance_by_iteration").rows if row["iteration"] == 2]
    assert [row["variance"] for row in second] == [None, None]


# ---- λ


def test_the_parts_of_a_change_add_up_and_name_its_cause(settings):
    rng = np.random.default_rng(0)
    groups = [group(number, total=rng.uniform(1, 5, 4).tolist()) for number in (1, 1, 1, 2, 2, 2)]
    found = measure_gates(groups, settings)
    first, second = found.within([1]), found.within([2])
    raw = [
        0.8 * np.mean([np.prod(gates(g.scores["total"], settings)) for g in part]) for part in (groups[:3], groups[3:])
    ]
    assert decompose(first, second, 0.8).change == pytest.approx(raw[1] - raw[0], abs=1e-12)

    # The same variance, a better best reply: all of it is g's.
    better = decompose(
        measure_gates([group(total=[1, 1, 3, 3])], settings), measure_gates([group(total=[2, 2, 4, 4])], settings), 0.8
    )
    assert better.quality == pytest.approx(0.8 * 0.25 * (1 / (1 + np.exp(-5.0)) - 0.5))
    assert (better.information, better.together) == (0.0, 0.0)

    # The same best reply, more variance: all of it is v's.
    wider = decompose(
        measure_gates([group(total=[5, 5])], settings), measure_gates([group(total=[1, 5])], settings), 0.8
    )
    assert wider.information == pytest.approx(0.8 / (1 + np.exp(-10.0)))
    assert (wider.quality, wider.together) == (0.0, 0.0)


def test_ends_are_quarters():
    assert gate_ends([1, 2, 3, 4, 5, 6, 7, 8]) == ([1, 2], [7, 8])
    assert gate_ends([4, 9]) == ([4], [9])


# ---- the page


def test_what_was_not_measured_is_a_dash_on_page_and_terminal(tmp_path):
    rows = [{"name": "a|b", "number": None, "other": 0.123456}]
    table = Table(name="t", caption="Numbers", columns={"name": "name", "number": "n", "other": "o"}, rows=rows)
    sections = [Section(title="First", findings=["A finding."], tables=[table], plots=["t.png"])]
    page = markdown("Title", "duet diagnose x", sections)
    assert "| a\\|b | – | 0.123 |" in page
    assert "    duet diagnose x\n" in page
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary(sections, tmp_path / "diagnosis.md"))
    printed = console.export_text()
    assert "A finding." in printed
    assert "–" in printed
