"""Replies are drawn while the learner steps: the same questions in the same order, under weights one step older."""

import pyarrow.parquet as pq
import pytest

from data.sampler import PROMPTS, EpochSampler
from tests.commands import duet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
ITERATIONS = 4


def test_iterations_overlap_within_the_bound(root, world, tmp_path):
    done = duet(
        root, "train", f"train.num_steps={ITERATIONS}", "run.name=ahead", f"run.directory={tmp_path}",
        "rollout.max_staleness_steps=1", "data.validation={}", "validation.recording_interval=0",
        "validation.num_quality_samples=0",
        "weight_sync.backend=object_store", "model.freeze=[model.layers.0.*, model.embed_tokens.weight]",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = pq.read_table(tmp_path / "ahead/iterations.parquet").to_pylist()
    assert [row["staleness"] for row in rows] == [0] + [1] * (ITERATIONS - 1)
    # Weights came into some replies while they were drawn; both versions are within the bound.
    ledger, ids = EpochSampler(2560, 0, PROMPTS), pq.read_table(world / "data/train.parquet")["id"].to_pylist()
    for row in rows:
        replies = pq.read_table(tmp_path / f"ahead/replies/{row['iteration']:06d}.parquet").to_pylist()
        newest = row["iteration"] - 1
        assert all(newest - 1 <= r["weight_version"] <= r["newest_version"] <= newest for r in replies)
        assert [r["prompt_id"] for r in replies[::4]] == [ids[index] for index in ledger.take(16)]
        assert all(r["total"] is not None or r["missing"] for r in replies)
    later = rows[1:]
    assert all(row["logp_gap_text"] is None for row in later), "older weights drew them"
    assert max(row["probe_gap"] for row in rows) < 1e-4
    # Through Ray's object store came what is trained, three layers and the output.
    whole = (world / "base/model.safetensors").stat().st_size
    assert all(0.5 * whole < row["sync_bytes"] < 0.8 * whole for row in rows)
    assert all(row["sync_bytes_per_second"] == pytest.approx(row["sync_bytes"] / row["seconds_sync"]) for row in rows)
    # The learner is what everybody waits for.
    assert sum(row["idle_learner"] for row in later) < 0.5 * len(later)
