"""What each number and each word of the configuration may be.

Every number has a bound: what is beyond it is a slip of the pen, or would end a run hours later. Pure.

The configuration: dataclasses with the meaning of each field under it. `configs.load` reads it, and
`configs.validate` refuses what no run could use.

Importable without torch.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

HEADLINE = "held_out"
"""The evaluation set that the summary reports first and recordings are taken from."""


MODES = ("adaptive", "fixed", "two_stage")


COMBINATIONS = ("sum", "harmonic")


ADVANTAGES = ("grpo", "dr_grpo", "rloo")


@dataclass
class Run:
    name: str = "auto"
    """Directory under `directory`; "auto" makes one from the date and time."""
    directory: str = "runs"
    seed: int = 0
    """Decides the order of the data and every draw of the sampler."""
    iterations: int = 40
    checkpoint_every: int = 10
    """Iterations between checkpoints; 0 makes one at the end only."""
    keep_checkpoints: int = 2
    """The newest ones that are kept; 0 keeps all."""
    stall_seconds: float = 300.0
    """Without progress for so long, the stacks of all members are written under stalls/; 0 switches this off."""
    exchange: str = "memory"
    """How weights reach the rollout workers: memory (of the learner's node, where all of them must be), directory (the
    run's own, which must be on storage that all nodes see), objects (Ray's object store, between any nodes) or
    broadcast (to all workers at once, between any nodes: NCCL where members have whole GPUs, gloo where none has)."""


@dataclass
class Model:
    checkpoint: str = MISSING
    """A Hugging Face checkpoint on disk, tokenizer included."""
    family: str = MISSING
    """How the model spells its tokens and interleaves its channels (speech/families/), or module:NAME
    of a family of your own."""
    dtype: str = "float32"
    """float32 or bfloat16, for learner and rollout alike."""
    max_length: int = 2048
    """Longest prompt plus reply, tokens."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that are not trained, as shell-style patterns of their names, model.layers.0.*, or as parts that the
    family has a name for: embeddings, layers, output."""
    trust_remote_code: bool = False
    """Runs code that comes with the checkpoint (auto_map in its config.json), with the rights of the run."""


@dataclass
class Data:
    prompts: Any = MISSING
    """Prompts to train on: a Parquet file, a folder of them as `duet prepare` makes it, or several with the share that
    each has of every iteration: [{path: a.parquet, weight: 2}, {path: b, weight: 1}]."""
    demonstrations: Any = MISSING
    """Demonstrations for the anchor; the same."""
    encoder: str = ""
    """module:Class of the speech encoder (`speech/codecs/base.py`) that `duet prepare` makes features with, for a
    family that hears them; empty: none."""
    encoder_path: str = ""
    """Where its files are."""
    held_out: dict[str, str] = field(default_factory=dict)
    """Evaluation sets by name, a file or folder of prompts each; `held_out` is the headline."""


@dataclass
class Rollout:
    workers: int = 1
    """At the start; `duet scale` changes it while the job runs."""
    most_workers: int = 0
    """Above 0 the number of workers follows the learner's wait, up to this many."""
    wait_share: float = 0.6
    """Share of an iteration that the learner may wait for replies before a worker is added."""
    cpus: float = 1.0
    """Ray CPUs of each worker."""
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    """Further resources of Ray that each worker takes, by the names that nodes were started with: {rollout: 1}."""
    threads: int = 1
    """CPU threads of each engine."""
    prompts: int = 16
    """Prompts an iteration."""
    group_size: int = 4
    """Replies a prompt (G)."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Only 1: the learner could not score what was sampled (method §3)."""
    top_k: int = 0
    """Only 0, all tokens, for the same reason."""
    max_tokens: int = 256
    """Longest reply."""
    structure: str = "auto"
    """Hold replies to the interleave pattern: on, off, or auto (on unless the family keeps to it by itself)."""
    max_sequences: int = 256
    """Replies in flight at once in each engine."""
    staleness: int = 0
    """Steps that the learner may take between the weights that draw a token and those that it trains. 0: nothing is
    drawn while the learner steps. 1 or more: replies of so many iterations to come are drawn and rated meanwhile."""
    in_process: bool = True
    """Run vLLM's core inside the worker: starts faster, good for small models."""
    kv_cache_gib: float = 1.0
    gpu_memory_share: float = 0.9
    tensor_parallel: int = 1
    start_seconds: float = 600.0
    sample_seconds: float = 600.0
    sync_seconds: float = 120.0
    beat_seconds: float = 60.0
    """How long a worker may give no sign of life."""
    probe_limit: float = 1e-3
    """Largest difference of a log-probability between a worker and the learner after a sync; beyond it the run stops.
    float32 stays below 1e-4, bfloat16 needs about 2e-1 (0.14 on the playground)."""


@dataclass
class Named:
    use: str = MISSING
    """module:Class."""
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class NamedRater(Named):
    name: str = MISSING
    """What the rater calls its score."""


@dataclass
class Decoders:
    """Actors that decode for the reward servers, which then hold no codec."""

    members: int = 0
    """At the start; `duet scale` changes it while the job runs. 0: each server decodes by itself."""
    cpus: float = 1.0
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    """As `rollout.resources`, of each decoder."""
    start_seconds: float = 300.0


@dataclass
class Reward:
    servers: int = 2
    cpus: float = 0.5
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    """As `rollout.resources`, of each server."""
    codec: Named = field(default_factory=Named)
    """Its `arguments.path` is where its files are; further arguments are its class's own."""
    decoders: Decoders = field(default_factory=Decoders)
    raters: list[NamedRater] = field(default_factory=list)
    total: dict[str, float] = field(default_factory=dict)
    """Weight of each rater in the total score, which λ is measured from."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Further combined scores by name, each a weight by rater."""
    combine: str = "sum"
    """How raters combine: sum (weighted mean) or harmonic (weighted harmonic mean; scores must be positive)."""
    signal: str = ""
    """module:function that measures signal quality of a waveform, for a few replies at each evaluation; empty: none."""
    missing_limit: float = 0.5
    """Largest share of a rater's scores that may be missing by its own fault; above it the run stops. 1 never stops."""
    missing_window: int = 3
    """Iterations over which that share is taken; a failure that passes sooner is outlived."""
    start_seconds: float = 300.0
    score_seconds: float = 600.0
    """Deadline for a batch; judges that have not answered after four fifths of it are not waited for."""
    beat_seconds: float = 60.0
    """How long a server may give no sign of life."""


@dataclass
class Mix:
    mode: str = "adaptive"
    """adaptive, fixed, or two_stage (anchor alone, then `fixed`)."""
    fixed: float = 0.5
    """λ in mode fixed, and in two_stage after the switch."""
    switch: int = 0
    """Iterations of anchor alone in mode two_stage."""
    largest: float = 0.8
    """λ_max: at least 1 − λ_max of the anchor always stays."""
    slope: float = 5.0
    """k of the quality gate."""
    threshold: float = 3.0
    """Score above which a group's best reply opens the quality gate."""
    lowest_score: float = 1.0
    highest_score: float = 5.0
    """The scale of the scores; decides the largest possible variance."""
    smoothing: float = 0.9
    """α of the moving average; 0 switches it off."""
    first: float | None = None
    """λ before the first iteration, for the moving average to start from; none: the first measured value."""
    per_group: bool = False
    """Weights each group's preference by that group's own λ; the anchor's share stays 1 − their mean."""


@dataclass
class Pairs:
    channel: str = "text"
    """text, speech or all: the tokens whose log-probabilities are compared."""
    beta: float = 0.2
    """β of the loss."""
    score: str = "total"
    """The score that decides which reply is the better."""
    ties: list[str] = field(default_factory=list)
    """Scores that decide among equals, in this order; none: the raters of the total, as configured."""
    margin: float = 0.5
    """A pair whose scores are nearer than this is not used."""
    chosen: str = "sample"
    """What the worst sample is compared with: sample (the best one) or demonstration (the prompt's own, rated too)."""
    file: str = ""
    """Parquet or JSONL of pairs made before (`duet pairs`); empty: pairs are made of each iteration's samples."""


@dataclass
class Preference:
    objective: str = "grpo"
    """grpo (policy gradient by routes) or dpo (pairs)."""
    routes: Any = "wavalign"
    """wavalign, full, alpo, anchor_only, or a table such as [{score: total, channel: text, weight: 1.0}]."""
    advantage: str = "grpo"
    """grpo (by the group's mean and deviation), dr_grpo (by its mean), or rloo (by the mean of the others)."""
    average: str = "reply"
    """reply (mean over a reply's tokens, replies, groups), token (mean over all tokens), or constant (sum over tokens /
    `constant`, mean over replies)."""
    constant: int = 0
    """Tokens that average constant divides by; 0: rollout.max_tokens."""
    clip: float = 0.2
    """ε of the clipped ratio."""
    clip_high: float | None = None
    """ε above 1; none: as `clip`."""
    ratio: str = "truncated"
    """truncated (against the learner before the step, times a bounded importance weight against the sampler), behaviour
    (against the sampler), or one (as in the authors' released code)."""
    importance_cap: float = 2.0
    """Largest importance weight of a token."""
    kl_text: float = 0.01
    """β of the KL to the start model on text tokens."""
    kl_speech: float = 0.01
    boundary: str = "speech"
    """Channel that begin- and end-of-speech tokens train with."""
    pairs: Pairs = field(default_factory=Pairs)


@dataclass
class Anchor:
    rows: int = 16
    """Demonstrations an iteration."""
    weight_text: float = 1.0
    weight_speech: float = 1.0


@dataclass
class Lora:
    rank: int = 0
    """Of low-rank adapters, which are trained in place of the model's own weights and are all that workers are sent; 0:
    none, all weights are trained that `model.frozen` does not name."""
    alpha: float = 16.0
    """What an adapter gives counts alpha / rank."""
    targets: list[str] = field(default_factory=lambda: ["*_proj"])
    """Linear layers that get an adapter, as shell-style patterns of their names. Those that `model.frozen` names get
    none."""


@dataclass
class Learner:
    ranks: int = 2
    cpus: float = 0.5
    gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    """As `rollout.resources`, of each rank."""
    strategy: str = "PACK"
    """How ranks lie on the nodes: PACK (as few as possible), SPREAD (as many as possible), STRICT_PACK (one, or they do
    not start), STRICT_SPREAD (a node each, or they do not start)."""
    threads: int = 1
    zero_stage: int = 2
    """DeepSpeed ZeRO stage, 0 to 3."""
    learning_rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    gradient_clip: float = 1.2
    warmup: int = 0
    """Steps of linear warm-up."""
    final_rate: float = 1.0
    """Learning rate at the last iteration as a share of the highest (cosine); 1 keeps it constant."""
    micro_batch_tokens: int = 8192
    """Of a rank: about the most that it takes forward and backward at once, padding included. A single row or pair may
    have more; with fewer rows than micro-batches on some rank, so may others."""
    packing: bool = True
    """Rows lie one behind another, without padding. False pads them, for a model whose attention cannot be replaced
    (transformers' AttentionInterface)."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer, and compute the rest again in the backward pass: less memory, a third more
    work."""
    lora: Lora = field(default_factory=Lora)
    skips_in_a_row: int = 3
    """Steps in a row whose loss or gradient was not finite, and which were skipped, after which the run stops."""
    start_seconds: float = 600.0
    step_seconds: float = 600.0


@dataclass
class Evaluation:
    recordings: int = 6
    """Held-out prompts whose question and replies before and after are written as audio."""
    listen_every: int = 10
    """Iterations between which those prompts, and as many of training that have a demonstration, are answered for
    people to listen to; 0: never."""
    signal_samples: int = 12
    """Replies whose signal quality is measured."""


@dataclass
class Metrics:
    host: str = "127.0.0.1"
    """Where the controller serves them, and rollout workers theirs, on a free port each; 0.0.0.0 for all addresses."""
    port: int = 0
    """0 takes any free port."""


@dataclass
class Cluster:
    address: str = ""
    """A Ray cluster to join; empty: RAY_ADDRESS if set, else one is started here."""


@dataclass
class Config:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    rollout: Rollout = field(default_factory=Rollout)
    reward: Reward = field(default_factory=Reward)
    mix: Mix = field(default_factory=Mix)
    preference: Preference = field(default_factory=Preference)
    anchor: Anchor = field(default_factory=Anchor)
    learner: Learner = field(default_factory=Learner)
    evaluation: Evaluation = field(default_factory=Evaluation)
    metrics: Metrics = field(default_factory=Metrics)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def replies(self) -> int:
        """Replies an iteration."""
        return self.rollout.prompts * self.rollout.group_size

    def yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.structured(self))


def longest_prompt(config: Config) -> int:
    """Tokens of a prompt that leaves room for the longest reply."""
    return config.model.max_length - config.rollout.max_tokens


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
