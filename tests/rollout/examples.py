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
        max_length=192,
        max_sequences=256,
        constrained=True,
        in_process=True,
        threads=1,
        kv_cache_gib=1,
        gpu_memory_share=0.9,
        tensor_parallel=1,
    )
    return replace(usual, **changes)
