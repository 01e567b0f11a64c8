"""What each number and each word of the configuration may be.

Every number has a bound: what is beyond it is a slip of the pen, or would end a run hours later. Pure.
"""

import math
from dataclasses import dataclass

from controller.mix import MODES
from controller.statistics import ADVANTAGES, COMBINATIONS

MANY = 1_000_000.0
"""More than anybody means; also what keeps an integer within 32 bits."""
WEEK = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Bound:
    """A range, both ends allowed."""

    low: float
    high: float = MANY

    def complaint(self, value: float) -> str | None:
        """What is wrong with a value and what is allowed; None for a good one."""
        if self.low <= value <= self.high:
            return None
        if self.high < MANY or math.isnan(value):
            return f"{value} is outside [{self.low:.10g}, {self.high:.10g}]"
        if value < self.low:
            return f"{value} is too small; at least {self.low:.10g}"
        return f"{value} is too large; at most {self.high:.10g}"


DEADLINE = Bound(1e-3, WEEK)
CPUS = Bound(0.0, 4096.0)
COUNT, AMOUNT = Bound(1), Bound(0)
SHARE = Bound(0.0, 1.0)

NUMBERS: dict[str, Bound] = {
    "run.seed": Bound(0, 2**31 - 1),
    "run.iterations": COUNT,
    "run.checkpoint_every": AMOUNT,
    "run.keep_checkpoints": AMOUNT,
    "run.stall_seconds": Bound(0.0, WEEK),
    "model.max_length": Bound(2),
    "rollout.workers": COUNT,
    "rollout.most_workers": AMOUNT,
    "rollout.wait_share": SHARE,
    "rollout.cpus": CPUS,
    "rollout.gpus": CPUS,
    "rollout.threads": Bound(1, 4096),
    "rollout.prompts": COUNT,
    "rollout.group_size": Bound(2),
    "rollout.temperature": Bound(1e-2, 10.0),
    "rollout.max_tokens": COUNT,
    "rollout.max_sequences": COUNT,
    "rollout.staleness": Bound(0, 64),
    "rollout.kv_cache_gib": Bound(1e-3, 65536.0),
    "rollout.gpu_memory_share": Bound(0.01, 1.0),
    "rollout.tensor_parallel": Bound(1, 1024),
    "rollout.start_seconds": DEADLINE,
    "rollout.sample_seconds": DEADLINE,
    "rollout.sync_seconds": DEADLINE,
    "rollout.beat_seconds": Bound(5.0, WEEK),
    "rollout.probe_limit": Bound(1e-9, 100.0),
    "reward.servers": COUNT,
    "reward.cpus": CPUS,
    "reward.gpus": CPUS,
    "reward.decoders.members": AMOUNT,
    "reward.decoders.cpus": CPUS,
    "reward.decoders.gpus": CPUS,
    "reward.decoders.start_seconds": DEADLINE,
    "reward.start_seconds": DEADLINE,
    "reward.score_seconds": DEADLINE,
    "reward.beat_seconds": Bound(5.0, WEEK),
    "reward.missing_limit": SHARE,
    "reward.missing_window": COUNT,
    "mix.fixed": SHARE,
    "mix.switch": AMOUNT,
    "mix.largest": SHARE,
    "mix.slope": Bound(1e-6),
    "mix.threshold": Bound(-MANY),
    "mix.lowest_score": Bound(-MANY),
    "mix.highest_score": Bound(-MANY),
    "mix.smoothing": Bound(0.0, 0.9999),
    "mix.first": SHARE,
    "preference.constant": AMOUNT,
    "preference.clip": SHARE,
    "preference.clip_high": Bound(0.0, 10.0),
    "preference.importance_cap": Bound(1.0, 1000.0),
    "preference.kl_text": Bound(0.0, 100.0),
    "preference.kl_speech": Bound(0.0, 100.0),
    "preference.pairs.beta": Bound(1e-6, 1000.0),
    "preference.pairs.margin": Bound(0.0, 1000.0),
    "anchor.rows": COUNT,
    "anchor.weight_text": AMOUNT,
    "anchor.weight_speech": AMOUNT,
    "learner.ranks": COUNT,
    "learner.cpus": CPUS,
    "learner.gpus": CPUS,
    "learner.threads": Bound(1, 4096),
    "learner.learning_rate": SHARE,
    "learner.betas": Bound(0.0, 0.999999),
    "learner.epsilon": Bound(1e-30, 1.0),
    "learner.weight_decay": SHARE,
    "learner.gradient_clip": AMOUNT,
    "learner.warmup": AMOUNT,
    "learner.final_rate": SHARE,
    "learner.skips_in_a_row": COUNT,
    "learner.micro_batch_tokens": COUNT,
    "learner.lora.rank": AMOUNT,
    "learner.lora.alpha": Bound(1e-6),
    "learner.start_seconds": DEADLINE,
    "learner.step_seconds": DEADLINE,
    "evaluation.recordings": AMOUNT,
    "evaluation.listen_every": AMOUNT,
    "evaluation.signal_samples": AMOUNT,
    "metrics.port": Bound(0, 65535),
}
"""By key; of a key that holds several numbers, the bound of each."""

CHOICES: dict[str, tuple] = {
    "run.exchange": ("memory", "directory", "objects", "broadcast"),
    "model.dtype": ("float32", "bfloat16"),
    "rollout.structure": ("auto", "on", "off"),
    "rollout.top_p": (1.0,),
    "rollout.top_k": (0,),
    "mix.mode": MODES,
    "reward.combine": COMBINATIONS,
    "preference.objective": ("grpo", "dpo"),
    "preference.advantage": ADVANTAGES,
    "preference.average": ("reply", "token", "constant"),
    "preference.ratio": ("truncated", "behaviour", "one"),
    "preference.boundary": ("speech", "text"),
    "preference.pairs.channel": ("text", "speech", "all"),
    "preference.pairs.chosen": ("sample", "demonstration"),
    "learner.zero_stage": (0, 1, 2, 3),
    "learner.strategy": ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
}

OPTIONAL_PATHS = ("data.encoder_path", "preference.pairs.file")
PATHS = ("run.directory", "model.checkpoint", "data.prompts", "data.demonstrations", *OPTIONAL_PATHS)
"""Keys that hold the name of a file or folder; the optional ones may be empty."""
SOURCES = ("data.prompts", "data.demonstrations")
"""Those among them that may hold several names, with weights."""
