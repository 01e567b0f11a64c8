"""Comparison of arms: intervals, verdicts on the paper's claims, and the page."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from configs.load import load_config
from evaluation.ablation.arms import ARMS
from evaluation.ablation.bootstrap import Bootstrap, on_front
from evaluation.ablation.claims import NOT_REPRODUCED, REPRODUCED, UNDECIDED, judge_claims, paper_front, verdict
from evaluation.ablation.metrics import read_validation_metrics
from evaluation.ablation.results import AblationResults, RunResult
from tests.evaluation.ablation.ablations import CONFIG, ablate, plans, replies, row, write_run


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """Write all arms with two seeds."""
    directory = tmp_path_factory.mktemp("compare")
    for one in plans(directory, "", 2):
        write_run(one)
    return directory


@pytest.fixture(scope="module")
def comparison(everything) -> AblationResults:
    return AblationResults([RunResult.read(one) for one in plans(everything, "", 2)])


# ---- intervals


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator, bootstrap = np.random.default_rng(1), Bootstrap(80, 1000)
    experiments, seeds = 300, 3
    covered = independent = 0
    for _ in range(experiments):
        # Seeds share prompts: three seeds do not triple the number of prompts.
        values = generator.normal(2.0, 1.0, 80) + generator.normal(0, 0.2, (seeds, 80))
        estimate = bootstrap.estimate(values)
        covered += estimate.low <= 2.0 <= estimate.high
        width = 1.96 * values.std() / np.sqrt(values.size)
        independent += abs(values.mean() - 2.0) <= width
    assert 0.91 <= covered / experiments <= 0.98
    assert independent / experiments < 0.85  # as if each seed had its own prompts


def test_pairing_takes_out_what_makes_prompts_hard():
    generator, bootstrap = np.random.default_rng(2), Bootstrap(200, 2000)
    hard = generator.normal(0, 1, 200)
    one, other = (hard + shift + generator.normal(0, 0.1, (2, 200)) for shift in (0.1, 0.0))
    paired = bootstrap.estimate(one - other)
    apart = bootstrap.estimate(one - generator.permuted(other, axis=1))
    assert paired.low > 0
    assert apart.low < 0 < apart.high
    assert (apart.high - apart.low) > 4 * (paired.high - paired.low)
    # Both arms share the drawn prompts: the difference of resamples is the resampled difference.
    samples = bootstrap.estimate(one).samples - bootstrap.estimate(other).samples
    np.testing.assert_allclose(samples, paired.samples, atol=1e-5)


def test_a_prompt_that_is_left_out_takes_no_part():
    bootstrap = Bootstrap(50, 500)
    values = np.random.default_rng(3).normal(size=(1, 50))
    holes = values.copy()
    holes[0, 30:] = np.nan
    estimate = bootstrap.estimate(holes)
    assert estimate.value == pytest.approx(values[0, :30].mean())
    means = [np.average(values[0, :30], weights=counts[:30]) for counts in bootstrap.counts[:20]]
    np.testing.assert_allclose(estimate.samples[:20], means, atol=1e-5)
    assert bootstrap.estimate(np.full((2, 50), np.nan)) is None
    assert bootstrap.estimate(np.stack([holes[0], np.full(50, np.nan)])).by_seed == (estimate.value,)


def test_the_front_is_what_nobody_beats():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [1.5, 1.5], [2.0, 2.0], [0.5, 3.0]])
    assert on_front(points).tolist() == [True, True, False, True, False]
    assert on_front(np.stack([points, points[::-1]]))[1].tolist() == [False, True, False, True, True]


# ---- replies without a score


def test_a_broken_voice_does_not_hide_by_dropping_out():
    config = load_config(CONFIG, [])
    rows = [
        row("good", answer=5.0, heard=5.0, manner=4.0, spoken_right=5.0),
        row("mute", answer=5.0, missing=dict.fromkeys(("heard", "manner", "spoken_right"), "no speech")),
        row("judge away", answer=1.0, heard=5.0, spoken_right=5.0, missing={"manner": "time-out"}, failed=("manner",)),
    ]
    measured = read_validation_metrics(tuple(r["prompt_id"] for r in rows), rows, config)
    expected = {
        "iq": [100, 100, 0],
        "eq": [4.5, 1, np.nan],
        "spoken_right": [100, 0, 100],
        "heard": [100, 0, 100],
        "manner": [4, 1, np.nan],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(measured.values[name], values)
    assert (measured.unratable, measured.unrated) == (1, 1)


def test_a_voice_that_is_gone_has_the_lowest_score_and_not_none():
    silence = dict.fromkeys(("heard", "manner"), "no speech")
    measured = read_validation_metrics(
        ("a", "b"), [row(name, answer=5.0, missing=silence) for name in "ab"], load_config(CONFIG, [])
    )
    assert measured.mean("eq") == 1.0
    assert measured.mean("spoken_right") is None  # no rater gives this score


# ---- verdicts


@pytest.mark.parametrize(
    ("direction", "low", "high", "expected"),
    [
        ("higher", 0.1, 0.3, REPRODUCED),
        ("higher", -0.3, -0.1, NOT_REPRODUCED),
        ("lower", -0.3, -0.1, REPRODUCED),
        ("lower", 0.1, 0.3, NOT_REPRODUCED),
        ("lower", -0.1, 0.3, UNDECIDED),
        ("higher", 0.0, 0.3, UNDECIDED),
        ("open", 0.1, 0.3, "higher"),
        ("open", -0.1, 0.3, UNDECIDED),
    ],
)
def test_the_interval_decides(direction, low, high, expected):
    assert verdict(direction, low, high, (low, high) if low * high > 0 else (low, low)) == expected


def test_a_seed_that_points_the_other_way_leaves_it_undecided():
    assert verdict("higher", 0.1, 0.3, (0.4, 0.2, 0.1)) == REPRODUCED
    assert verdict("higher", 0.1, 0.3, (0.5, 0.2, -0.1)) == UNDECIDED
    assert verdict("lower", -0.3, -0.1, (-0.4, 0.01)) == UNDECIDED
    assert verdict("lower", -0.3, -0.1, (-0.2,)) == UNDECIDED, "one seed decides nothing"


def test_claims_are_judged_by_what_was_measured(comparison):
    found = {(j.claim.arm, j.claim.other, j.claim.measure): j for j in judge_claims(comparison)}
    expected = {
        ("fixed_full", "fixed_text", "eq"): REPRODUCED,
        ("adaptive_full", "adaptive", "eq"): REPRODUCED,
        ("fixed_text_03", "fixed_text", "iq"): REPRODUCED,
        ("dpo_full", None, "eq"): REPRODUCED,
        ("alpo", "adaptive", "iq"): NOT_REPRODUCED,
        ("adaptive", "adaptive_raw", "iq"): UNDECIDED,
    }
    assert {key: found[key].verdict for key in expected} == expected
    one = found["fixed_full", "fixed_text", "eq"]
    assert one.difference.value == pytest.approx(one.ours[0] - one.ours[1])
    assert one.difference.value == pytest.approx((3.6 - 3.9) / 2, abs=0.03)
    assert len(one.difference.by_seed) == 2
    assert one.minutes == pytest.approx(8.0)  # two arms, two seeds, two minutes each
    collapse = found["dpo_full", None, "eq"]
    assert collapse.difference.value == pytest.approx(collapse.ours[0] - collapse.ours[1])


def test_the_front_of_the_papers_arms(comparison):
    front = paper_front(comparison)
    on, share = (dict(zip(front.arms, values, strict=True)) for values in (front.on, front.share))
    assert set(on) == {name for name, arm in ARMS.items() if arm.in_table}
    assert not on["fixed_full"]
    assert share["fixed_full"] == 0.0
    assert front.verdict("fixed_full") == NOT_REPRODUCED
    assert on["adaptive"] or on["adaptive_raw"]
    assert share["adaptive"] + share["adaptive_raw"] >= 1.0


def test_arms_are_compared_over_the_seeds_that_both_have(everything, comparison):
    some = [RunResult.read(one) for one in plans(everything, "fixed_text,adaptive", 2) if one.name != "fixed_text-1"]
    part = AblationResults(some)
    assert part.seeds("fixed_text", "adaptive") == (0,)
    difference = part.difference("held_out", "iq", "adaptive", "fixed_text")
    assert difference.by_seed == comparison.difference("held_out", "iq", "adaptive", "fixed_text").by_seed[:1]


# ---- the page and its files


def test_the_page_shows_what_is_there(everything, tmp_path, capsys):
    page = tmp_path / "docs" / "results.md"
    ablate(everything, "--write", "--seeds", "2", "--page", str(page))
    text = page.read_text()
    assert str(page) in capsys.readouterr().out
    for title in ("## Settings", "## Arms", "## What the paper found", "## Pareto front", "held_out_facts", "## Runs"):
        assert title in text
    assert f"duet ablate --seeds 2 --iterations 6 --directory {everything} --page {page}" in text
    for arm in ARMS:
        assert f"**{arm}**" in text
        assert text.count(f"run.name={arm}-") == 2
    claim = next(line for line in text.splitlines() if "`fixed_full` < `fixed_text`" in line)
    assert "2.48 against 2.60 (VITA-Audio)" in claim
    assert "**reproduced**" in claim
    training = next(line for line in text.splitlines() if line.startswith("| adaptive |") and "of" in line)
    assert "| 0.100 | 0.140 | 0.050 | 12 of 768 | 2.0 |" in training
    assert "24 runs, 48 minutes in all" in text
    assert "2.0e-05 on sampled tokens, 2.0e-06 on the probe" in text
    assert f"![IQ and EQ of the arms]({page.with_suffix('.png').name})" in text
    for picture in (page.with_suffix(".png"), everything / "comparison.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 30_000
    assert "nan" not in text.lower()


def test_the_table_has_arms_and_runs(everything, comparison):
    ablate(everything, "--write", "--seeds", "2")
    rows = pq.read_table(everything / "comparison.parquet").to_pylist()
    assert len(rows) == 2 * len(ARMS) * 3  # sets; an arm and its two runs
    own = [r for r in rows if r["arm"] == "adaptive" and r["set"] == "held_out"]
    assert [r["seed"] for r in own] == [None, 0, 1]
    arm, *runs = own
    assert arm["iq"] == pytest.approx(np.mean([r["iq"] for r in runs]))
    assert arm["iq_low"] < arm["iq"] < arm["iq_high"]
    assert arm["eq_change"] == pytest.approx(comparison.change("held_out", "eq", "adaptive").value)
    assert arm["iq_spread"] == pytest.approx(np.std([r["iq"] for r in runs], ddof=1))
    assert runs[0]["iq_spread"] is None
    assert (arm["minutes"], runs[1]["minutes"], arm["truncated"]) == (4.0, 2.0, 12)
    assert "run.name=adaptive-1" in runs[1]["command"]
    assert (everything / "comparison.md").is_file()


def test_only_claims_whose_arms_are_there(tmp_path):
    for one in plans(tmp_path, "adaptive,anchor_only"):
        write_run(one)
    ablate(tmp_path, "--write", "--seeds", "1")
    text = (tmp_path / "comparison.md").read_text()
    assert "`adaptive` is on the Pareto front among `adaptive`" in text
    for absent in ("fixed_text", "dpo", "alpo"):
        assert absent not in text


def test_replies_without_a_score_are_counted_in_the_table(tmp_path):
    [one] = plans(tmp_path, "adaptive")
    after = replies(0.8, 4.0, 0, "x")
    for place in range(3):
        after[place] = row(f"p{place}", missing=dict.fromkeys(("answer", "heard", "manner"), "truncated reply"))
    after[3] = row("p3", answer=5.0, missing={"heard": "time-out"}, failed=("heard",))
    write_run(one, after=after)
    ablate(tmp_path, "--write", "--seeds", "1")
    line = next(x for x in (tmp_path / "comparison.md").read_text().splitlines() if "**adaptive**" in x)
    # p3: manner and spoken_right have neither a score nor a failure.
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["4", "1"]


def test_runs_that_were_rated_differently_are_not_compared(tmp_path):
    first, second = plans(tmp_path)
    write_run(first)
    write_run(second, raters={"answer": "a-2"})
    with pytest.raises(InputError, match="scores of different raters cannot be compared"):
        ablate(tmp_path, "--write")


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        ablate(tmp_path, "--write")
