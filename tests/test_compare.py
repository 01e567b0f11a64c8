"""Arms of the comparison side by side, and what one can do with a run afterwards: for real, and short."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.records import PAIRS
from tests.commands import duet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(660)]
SMALL = ("reward.num_servers=1", "learner.num_workers=1", "validation.num_quality_samples=0")
"""Fewer members: what is shown here does not depend on them, and they start sooner."""


@pytest.fixture(scope="module")
def compared(root, few, tmp_path_factory) -> Path:
    """Three arms, one seed, two iterations: two arms first, then the third beside what the first call left."""
    directory = tmp_path_factory.mktemp("compare")
    kept: dict[Path, int] = {}
    for arms in ("anchor_only,fixed_text", "anchor_only,fixed_text,adaptive"):
        done = duet(
            root, "ablate", "--arms", arms, "--seeds", "1", "--iterations", "2",
            "--directory", str(directory), f"data.validation={{held_out: {few}}}", *SMALL, seconds=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        for summary, time in kept.items():
            assert summary.stat().st_mtime_ns == time, "a run that has ended is not run again"
        kept = {summary: summary.stat().st_mtime_ns for summary in directory.glob("*/summary.json")}
        assert len(kept) == len(arms.split(","))
    return directory


def test_a_comparison_of_three_arms_is_whole(compared):
    directory = compared
    table = pq.read_table(directory / "comparison.parquet").to_pylist()
    assert {row["arm"] for row in table} == {"anchor_only", "fixed_text", "adaptive"}
    page = (directory / "comparison.md").read_text()
    for arm in ("anchor_only", "fixed_text", "adaptive"):
        assert f"**{arm}**" in page
        assert f"run.name={arm}-0" in page
    assert "**reproduced**" not in page, "one seed decides nothing"
    assert page.count("**undecided**") == 3  # two claims and the front
    assert (directory / "comparison.png").stat().st_size > 10_000


def test_arms_differ_in_what_they_are_named_for_and_in_nothing_else(compared):
    directory = compared
    mixes, prompts = {}, {}
    for arm in ("anchor_only", "fixed_text", "adaptive"):
        rows = pq.read_table(directory / f"{arm}-0/iterations.parquet").to_pylist()
        mixes[arm] = [row["lambda"] for row in rows]
        prompts[arm] = [
            pq.read_table(directory / f"{arm}-0/replies/{row['iteration']:06d}.parquet")["prompt_id"].to_pylist()
            for row in rows
        ] + [row["demonstrations"] for row in rows]
    assert mixes["anchor_only"] == [0.0] * 2
    assert mixes["fixed_text"] == [0.5] * 2
    assert len(set(mixes["adaptive"])) > 1
    assert prompts["anchor_only"] == prompts["fixed_text"] == prompts["adaptive"]
    before = [
        pq.read_table(directory / f"{arm}-0/evaluations/before/held_out.parquet")["token_ids"].to_pylist()
        for arm in mixes
    ]
    assert before[0] == before[1] == before[2], "every arm starts from the same replies"


def test_pairs_of_a_run_train_another_offline(root, few, compared, tmp_path):
    """Method §5: from scored replies to pairs, and from pairs to a step, through the same commands and records."""
    directory = compared
    made = duet(root, "pairs", str(directory / "fixed_text-0"), "--out", str(tmp_path / "pairs.parquet"))
    assert made.returncode == 0, made.stderr
    pairs = pq.read_table(tmp_path / "pairs.parquet")
    assert pairs.schema.equals(PAIRS)
    # Pairs need no scores: nobody may have kept them.
    bare = pairs.select(["prompt_id", "prompt_ids", "chosen_ids", "rejected_ids", "origin"])
    pq.write_table(bare, tmp_path / "bare.parquet")
    done = duet(
        root, "train", "train.num_steps=2", "run.name=offline", f"run.directory={tmp_path}",
        f"data.validation={{held_out: {few}}}", *SMALL, "algorithm.name=dpo",
        f"algorithm.dpo.pairs_file={tmp_path / 'bare.parquet'}", "mix_ratio.schedule=fixed", "mix_ratio.value=1",
        "rollout.batch_size=4",
        "algorithm.dpo.channel=all",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = pq.read_table(tmp_path / "offline/iterations.parquet").to_pylist()
    assert [row["pairs"] for row in rows] == [4, 4]
    assert rows[0]["loss_preference"] == pytest.approx(0.6931, abs=1e-3), "nothing has moved before the first step"
    assert rows[1]["weight_version"] == 1
    replies = pq.read_table(tmp_path / "offline/replies/000001.parquet").to_pylist()
    assert [r["use"] for r in replies] == ["chosen", "rejected"] * 4
    assert {r["worker"] for r in replies} == {"recorded"}
    for r in replies:  # nothing is said of what was not done here
        assert (r["total"], r["seed"], r["seconds_audio"], r["sampling"], r["rater_versions"]) == (
            None,
            None,
            None,
            [],
            [],
        )
        assert "fixed_text-0" in dict(r["details"])["origin"]
