"""A run that trains adapters on pairs of the model's own replies and demonstrations.

The adapters alone travel, and workers compute with what they make.
"""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.commands import duet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = duet(
        root, "train", "train.num_steps=2", "run.name=adapted", f"run.directory={runs}", "learner.lora.r=8",
        "learner.warmup_steps=0", "data.validation={}", "validation.recording_interval=0",
        "validation.num_quality_samples=0",
        "algorithm.name=dpo", "algorithm.dpo.chosen_source=demonstration", "rollout.batch_size=8",
        "reward.num_servers=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return runs / "adapted"


def test_adapters_are_trained_sent_and_kept(run, world):
    rows = pq.read_table(run / "iterations.parquet").to_pylist()
    assert [row["weight_version"] for row in rows] == [0, 1]
    whole = (world / "base/model.safetensors").stat().st_size
    assert all(row["sync_bytes"] < 0.12 * whole for row in rows)
    # Weights that are merged, against a learner that adds: equal but for rounding, in the probe and in the samples.
    assert max(row["probe_gap"] for row in rows) < 1e-4
    assert max(row["logp_gap_text"] for row in rows) < 1e-4
    # The start model is the model without them.
    assert rows[0]["kl_text"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["kl_text"] > 0
    checkpoint = run / "checkpoints/000002"
    old, new = load_file(world / "base/model.safetensors"), load_file(checkpoint / "model.safetensors")
    parts = load_file(checkpoint / "adapter/adapter_model.safetensors")
    config = json.loads((checkpoint / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16.0)
    assert len(config["target_modules"]) == 28
    for name, before in old.items():
        start = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{start}.lora_A.weight" in parts:
            a, b = (parts[f"{start}.lora_{part}.weight"] for part in ("A", "B"))
            assert b.abs().max() > 0
            torch.testing.assert_close(new[name], before + 2.0 * b @ a)
            assert not torch.equal(new[name], before)
        else:
            assert torch.equal(new[name], before), name


def test_online_pairs_with_demonstrations_are_judged_on_both_sides(run):
    rows = pq.read_table(run / "iterations.parquet").to_pylist()
    assert sum(row["pairs"] for row in rows) > 0
    assert rows[1]["pair_accuracy"] is not None
    replies = pq.read_table(run / "replies/000001.parquet").to_pylist()
    rejected = [r for r in replies if r["use"] == "rejected"]
    examples = {r["prompt_id"]: r for r in replies if r["worker"] == "demonstration"}
    assert len(rejected) == rows[0]["pairs"]
    for reply in rejected:
        assert reply["total"] is not None
        assert examples[reply["prompt_id"]]["total"] - reply["total"] >= 0.5 - 1e-6
