"""A run that trains adapters: they alone travel, and workers compute with what they make."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.commands import duet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_adapters_are_trained_sent_and_kept(root, world, tmp_path):
    done = duet(
        root, "train", "train.num_steps=2", "run.name=adapted", f"run.directory={tmp_path}", "learner.lora.r=8",
        "learner.warmup_steps=0", "data.validation={}", "validation.recording_interval=0",
        "validation.num_quality_samples=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = pq.read_table(tmp_path / "adapted/iterations.parquet").to_pylist()
    assert [row["weight_version"] for row in rows] == [0, 1]
    whole = (world / "base/model.safetensors").stat().st_size
    assert all(row["sync_bytes"] < 0.12 * whole for row in rows)
    # Weights that are merged, against a learner that adds: equal but for rounding, in the probe and in the samples.
    assert max(row["probe_gap"] for row in rows) < 1e-4
    assert max(row["logp_gap_text"] for row in rows) < 1e-4
    # The start model is the model without them.
    assert rows[0]["kl_text"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["kl_text"] > 0
    checkpoint = tmp_path / "adapted/checkpoints/000002"
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
