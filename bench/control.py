"""What the controller itself costs on the playground, and how an iteration grows with its replies.

Real members and all, iterations of 16 and of 32 prompts take turns in one run, so that both see the same machine: the
growth is that of neighbours. The controller's own share is what it spends while it waits for no actor
(`bench.controller_profile`). `bench.simulation` counts its processor time with many workers.
"""

import tempfile

from bench.controller_profile import CpuUsage, watched
from bench.fixtures import joined, playground
from bench.rows import BenchRow, row
from controller.loop import TrainingLoop

PROMPTS = 16
WARM = 2
EACH = 5
"""Pairs of iterations of each repetition, beside the warm ones."""


def playground_run(repeats: int) -> list[tuple[CpuUsage, CpuUsage]]:
    """Iterations of 16 and of 32 prompts, in pairs."""

    def take_turns(loop: TrainingLoop, number: int) -> None:
        loop.config.rollout.batch_size = PROMPTS if number % 2 else 2 * PROMPTS

    with tempfile.TemporaryDirectory() as directory:
        config = playground(
            f"run.directory={directory}",
            "run.name=control",
            f"train.num_steps={2 * (WARM + EACH * repeats) + 1}",
            "checkpoint.interval=0",
            "validation.recording_interval=0",
        )
        config.data.validation, config.reward.audio_quality_fn = {}, ""
        with joined(config):
            spent = watched(config, take_turns)
    return list(zip(spent[2 * WARM :: 2], spent[2 * WARM + 1 :: 2], strict=False))


def measure(repeats: int) -> list[BenchRow]:
    """Growth, and the controller's share."""
    pairs = playground_run(repeats)
    return [
        row("iteration of twice the replies / iteration", [two.wall / one.wall for one, two in pairs], "≤ 2.05"),
        row("controller's own share, playground", [one.share for one, _ in pairs], "≤ 0.03"),
    ]
