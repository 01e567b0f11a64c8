"""Whole synchronous iterations against TRL's GRPOTrainer: tokens sampled, rated, learnt from and synced, a second.

The same model, prompts, group size, limit of a reply, stop token, temperature, KL to the start model and optimiser on
both sides, two threads in all, and a reward that costs nothing. Replies are as long as they come out. Duet does more on
its side: it holds replies to their structure, and learns from 16 demonstrations as well, which TRL's trainer has not; a
second line has the fewest that Duet can do with, one a rank.

TRL samples with `model.generate` of transformers, as it does by default. Its vLLM mode is no choice on a CPU: it puts
new weights into parameters that vLLM has repacked there, which fails (and TRL 1.16 is made for vLLM 0.22 to 0.31).
"""

import json
import os
import subprocess
import sys
import tempfile
from statistics import median

from bench.controller_profile import watched
from bench.fixtures import ROOT, apart, joined, playground
from bench.rows import BenchRow, row
from configs.schema import Config, RewardFunctionSection

GOAL = "≥ 2"
THREADS, PROMPTS = 2, 16
STEPS, WARM = 12, 3
"""Of each side in each repetition, and how many at the start do not count: compilation, and a schedule that begins."""


def trl(prompts: int = PROMPTS) -> float:
    """Tokens a second, median over steps."""
    command = [sys.executable, "-m", "bench.trl_side", "--steps", str(STEPS), "--prompts", str(prompts)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*command, "--threads", str(THREADS)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"TRL's side failed:\n{done.stderr[-4000:]}")
    steps = json.loads(done.stdout.splitlines()[-1])
    return median(tokens / seconds for tokens, seconds in steps[WARM - 1 :])


def free_reward(config: Config) -> Config:
    """The configuration with a reward that costs nothing, and nothing but iterations in a run."""
    config.reward.functions = [RewardFunctionSection(target="bench.null_reward:NullRewardPool", name="free")]
    config.reward.weights, config.reward.composites, config.reward.audio_quality_fn = {"free": 1.0}, {}, ""
    config.reward.codec.target, config.reward.num_servers = "bench.null_reward:NullReward", 1
    config.data.validation, config.validation.recording_interval, config.checkpoint.interval = {}, 0, 0
    return config


def duet(demonstrations: int, prompts: int = PROMPTS) -> float:
    """The same of Duet. demonstrations: of each step."""
    with tempfile.TemporaryDirectory() as directory:
        config = free_reward(
            playground(
                f"run.directory={directory}",
                "run.name=peer",
                f"train.num_steps={STEPS + 1}",
                f"rollout.batch_size={prompts}",
                f"anchor.batch_size={demonstrations}",
                f"rollout.num_workers={THREADS}",  # a thread each
                f"learner.num_workers={THREADS}",
            )
        )
        with joined(config):
            return median(s.tokens / s.wall for s in watched(config)[WARM:])


def measure(repeats: int) -> list[BenchRow]:
    """Each side in turn."""
    usual, fewest = [], []
    for _ in range(repeats):
        peer = trl()
        usual.append(apart(duet, playground().anchor.batch_size) / peer)
        fewest.append(apart(duet, THREADS) / peer)
    return [
        row("synchronous iterations / TRL", usual, GOAL),
        row("synchronous iterations with 2 demonstrations / TRL", fewest, ""),
    ]
