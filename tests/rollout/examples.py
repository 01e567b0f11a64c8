"""Settings of an engine on the playground, as tests and measurements start it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rollout.vllm_engine import EngineConfig


def engine_settings(world: Path, **changes: Any) -> EngineConfig:
    """changes: fields that are to be otherwise."""
    usual = EngineConfig(
        checkpoint=str(world / "base"),
        dtype="float32",
        max_model_len=192,
        max_num_seqs=256,
        constrained=True,
        in_process=True,
        num_threads=1,
        cpu_kv_cache_gib=1,
        gpu_memory_utilization=0.9,
        tensor_parallel_size=1,
    )
    return replace(usual, **changes)
