"""The configuration as pydantic models: each key with its type, its range or choices, and its meaning.

`configs.load` reads it, and `configs.validate` checks what takes several keys. Importable without torch.
"""

import os
import re
from typing import Annotated, Any, Literal, get_args

from omegaconf import OmegaConf
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

HEADLINE = "held_out"
"""The validation set that the summary reports first and recordings are taken from."""

MANY = 1_000_000
"""Upper bound of numbers without a bound of their own: catches typing errors, and keeps integers within 32 bits."""

WEEK = 7 * 24 * 3600.0

Schedule = Literal["adaptive", "fixed", "two_stage"]
MODES: tuple[str, ...] = get_args(Schedule)

Aggregate = Literal["sum", "harmonic"]
COMBINATIONS: tuple[str, ...] = get_args(Aggregate)

AdvantageEstimator = Literal["grpo", "dr_grpo", "rloo"]
ADVANTAGES: tuple[str, ...] = get_args(AdvantageEstimator)

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A run, a validation set or a score: each becomes part of the name of a file or a column."""

NAMING = "letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit"


def path_defect(value: str) -> str | None:
    """Return why no file can have this name, or None. Such a name would fail in other ways than "not found"."""
    try:
        parts = os.fsencode(value).split(b"/")
    except UnicodeEncodeError:
        return "cannot be the name of a file; it is not text"
    if not value or "\0" in value or len(os.fsencode(value)) > 4000 or any(len(part) > 255 for part in parts):
        return "cannot be the name of a file or folder; it is empty, too long or not text"
    return None


def _check_path(value: str) -> str:
    if defect := path_defect(value):
        raise ValueError(defect)
    return value


def _check_name(value: str) -> str:
    if not FILE_NAME.fullmatch(value):
        raise ValueError(f"may hold {NAMING}")
    return value


def _check_gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("must be a share of one GPU, or whole GPUs")
    return value


def _on_or_off(value: Any) -> Any:
    """YAML reads a bare on or off as a truth value."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Count = Annotated[int, Field(ge=1, le=MANY)]
Amount = Annotated[int, Field(ge=0, le=MANY)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=MANY)]
ScoreValue = Annotated[float, Field(ge=-MANY, le=MANY)]
KLCoefficient = Annotated[float, Field(ge=0.0, le=100.0)]
NumCPUs = Annotated[float, Field(ge=0.0, le=4096.0)]
NumGPUs = Annotated[float, Field(ge=0.0, le=4096.0), AfterValidator(_check_gpus)]
NumThreads = Annotated[int, Field(ge=1, le=4096)]
Timeout = Annotated[float, Field(ge=1e-3, le=WEEK)]
HeartbeatTimeout = Annotated[float, Field(ge=5.0, le=WEEK)]
PathName = Annotated[str, AfterValidator(_check_path)]
OptionalPath = Annotated[str, AfterValidator(lambda value: _check_path(value) if value else value)]
FileName = Annotated[str, AfterValidator(_check_name)]


class Section(BaseModel):
    """A table of the configuration. Rejects unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


class ActorSection(Section):
    """What Ray reserves for each actor of a pool."""

    num_cpus: NumCPUs = 1.0
    """Ray CPUs of each actor."""
    num_gpus: NumGPUs = 0.0
    """GPUs of each actor: a share of one, or whole GPUs."""
    resources: dict[str, float] = {}
    """Custom Ray resources of each actor, by the names that nodes were started with: {rollout: 1}."""


class RunSection(Section):
    name: FileName = "auto"
    """Directory under `directory`; "auto" makes one from the date and time."""
    directory: PathName = "runs"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the data order and of every sampled token."""
    stall_timeout_s: Annotated[float, Field(ge=0.0, le=WEEK)] = 300.0
    """Without progress for so long, the stacks of all actors are written to stalls/; 0 switches this off."""


class TrainSection(Section):
    num_steps: Count = 40
    """Optimizer steps, one an iteration."""


class CheckpointSection(Section):
    interval: Amount = 10
    """Iterations between checkpoints; 0 saves one at the end only."""
    max_to_keep: Amount = 2
    """Number of the newest checkpoints that are kept; 0 keeps all."""


class WeightSyncSection(Section):
    backend: Literal["shm", "filesystem", "object_store", "broadcast"] = "shm"
    """How weights reach the rollout workers. shm: shared memory of the learner's node, where all workers must be.
    filesystem: the run's directory, which must be on storage that all nodes see. object_store: Ray's object store,
    between any nodes. broadcast: a collective to all workers at once, between any nodes; NCCL where actors have whole
    GPUs, gloo where none has."""
    max_logprob_diff: Annotated[float, Field(ge=1e-9, le=100.0)] = 1e-3
    """Largest difference of a log-probability between a worker and the learner after a sync; beyond it the run stops.
    float32 stays below 1e-4, bfloat16 needs about 2e-1 (0.14 on the playground)."""


class ModelSection(Section):
    path: PathName
    """A Hugging Face checkpoint on disk, tokenizer included."""
    family: str
    """How the model spells its tokens and interleaves its channels (speech/families/), or module:NAME of your own
    family."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of learner and rollout alike."""
    max_model_len: Annotated[int, Field(ge=2, le=MANY)] = 2048
    """Maximum length of prompt plus reply, tokens."""
    freeze: list[str] = []
    """Parameters that are not trained: shell-style patterns of their names, model.layers.0.*, or parts that the family
    has a name for (embeddings, layers, output)."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint (auto_map in its config.json), with the rights of the run."""


class DataSection(Section):
    prompts: Any
    """Training prompts: a Parquet file, a folder of them as `duet prepare` makes it, or several sources with the share
    of each in every iteration: [{path: a.parquet, weight: 2}, {path: b, weight: 1}]."""
    sft: Any
    """Demonstrations for the anchor, in the form of `prompts`."""
    validation: dict[FileName, PathName] = {}
    """Validation sets by name, a file or folder of prompts each; `held_out` is the headline."""
    encoder: str = ""
    """module:Class of the speech encoder (`speech/codecs/base.py`) that `duet prepare` makes features with, for a
    family that hears them; empty: none."""
    encoder_path: OptionalPath = ""
    """Directory of the encoder's files."""


class AutoscaleSection(Section):
    max_workers: Amount = 0
    """Above 0 the number of workers follows the learner's wait, up to this many."""
    target_wait: Share = 0.6
    """Share of an iteration that the learner may wait for replies before a worker is added."""


class RolloutSection(ActorSection):
    num_workers: Count = 1
    """Workers at the start; `duet scale` changes the number while the job runs."""
    autoscale: AutoscaleSection = AutoscaleSection()
    num_threads: NumThreads = 1
    """CPU threads of each engine."""
    batch_size: Count = 16
    """Prompts an iteration."""
    n: Annotated[int, Field(ge=2, le=MANY)] = 4
    """Replies to each prompt: the group size G."""
    temperature: Annotated[float, Field(ge=1e-2, le=10.0)] = 1.0
    top_p: Annotated[float, Field(ge=1.0, le=1.0)] = 1.0
    """Always 1: the learner could not score what was sampled otherwise (method §3)."""
    top_k: Annotated[int, Field(ge=0, le=0)] = 0
    """Always 0, all tokens, for the same reason."""
    max_new_tokens: Count = 256
    """Maximum length of a reply."""
    constrained_decoding: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = "auto"
    """Hold replies to the interleave pattern: on, off, or auto (on unless the family keeps to it by itself)."""
    max_num_seqs: Count = 256
    """Maximum number of replies that an engine decodes at once."""
    max_staleness_steps: Annotated[int, Field(ge=0, le=64)] = 0
    """Maximum policy staleness in optimizer steps. 0: synchronous. k: up to k future batches are generated and scored
    while the learner trains."""
    engine_in_process: bool = True
    """Run vLLM's core inside the worker: starts faster, good for small models."""
    cpu_kv_cache_gib: Annotated[float, Field(ge=1e-3, le=65536.0)] = 1.0
    """KV cache of an engine without a GPU, GiB."""
    gpu_memory_utilization: Annotated[float, Field(ge=0.01, le=1.0)] = 0.9
    """Share of a GPU's memory that an engine takes."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    start_timeout_s: Timeout = 600.0
    generate_timeout_s: Timeout = 600.0
    sync_timeout_s: Timeout = 120.0
    heartbeat_timeout_s: HeartbeatTimeout = 60.0
    """A worker without a heartbeat for so long is restarted."""


class ClassSection(Section):
    """A class that is imported by name."""

    target: str
    """module:Class."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments of the class."""


class RewardFunctionSection(ClassSection):
    name: str
    """Name of the score that the class gives."""


class DecoderSection(ActorSection):
    """Actors that decode speech for the reward servers, which then hold no codec."""

    num_workers: Amount = 0
    """Decoders at the start; `duet scale` changes the number while the job runs. 0: each server decodes by itself."""
    start_timeout_s: Timeout = 300.0


class RewardSection(ActorSection):
    num_cpus: NumCPUs = 0.5
    """Ray CPUs of each server."""
    num_servers: Count = 2
    codec: ClassSection
    """`kwargs.path` is the directory of the codec's files; further kwargs are its class's own."""
    decoders: DecoderSection = DecoderSection()
    functions: list[RewardFunctionSection] = []
    """Reward functions; each gives one score of a reply."""
    weights: dict[str, float] = {}
    """Weight of each reward function in the total score, which λ is measured from."""
    composites: dict[str, dict[str, float]] = {}
    """Further combined scores by name, each a weight by reward function."""
    aggregate: Aggregate = "sum"
    """How scores combine: sum (weighted mean) or harmonic (weighted harmonic mean; scores must be positive)."""
    score_min: ScoreValue = 1.0
    score_max: ScoreValue = 5.0
    """The scale of the scores; decides the largest possible variance."""
    audio_quality_fn: str = ""
    """module:function that measures the signal quality of a waveform, for a few replies at each validation; empty:
    none."""
    max_missing_rate: Share = 0.5
    """Maximum share of a reward function's scores that may be missing by its own fault; above it the run stops. 1 never
    stops."""
    missing_window: Count = 3
    """Iterations over which that share is taken; a shorter failure does not stop the run."""
    start_timeout_s: Timeout = 300.0
    score_timeout_s: Timeout = 600.0
    """Deadline for a batch; remote judges get four fifths of it."""
    heartbeat_timeout_s: HeartbeatTimeout = 60.0
    """A server without a heartbeat for so long is restarted."""


class MixRatioSection(Section):
    """λ, the mix ratio between preference and anchor."""

    schedule: Schedule = "adaptive"
    """adaptive, fixed, or two_stage (anchor alone, then `value`)."""
    value: Share = 0.5
    """λ of the schedule fixed, and of two_stage after its warm-up."""
    warmup_steps: Amount = 0
    """Steps of anchor alone in the schedule two_stage."""
    max: Share = 0.8
    """λ_max: at least 1 − λ_max of the anchor always stays."""
    gate_slope: Annotated[float, Field(ge=1e-6, le=MANY)] = 5.0
    """k of the quality gate."""
    gate_threshold: ScoreValue = 3.0
    """Score above which a group's best reply opens the quality gate."""
    ema_decay: Annotated[float, Field(ge=0.0, le=0.9999)] = 0.9
    """α of the moving average; 0 switches it off."""
    initial: Share | None = None
    """λ before the first iteration, for the moving average to start from; none: the first measured value."""
    per_group: bool = False
    """Weights each group's preference by that group's own λ; the anchor's share stays 1 − their mean."""


class DPOSection(Section):
    channel: Literal["text", "speech", "all"] = "text"
    """Tokens whose log-probabilities are compared."""
    beta: Annotated[float, Field(ge=1e-6, le=1000.0)] = 0.2
    """β of the loss."""
    score: str = "total"
    """Score that decides which reply is the better."""
    tie_breakers: list[str] = []
    """Scores that decide among equals, in this order; none: the reward functions of the total, as configured."""
    min_gap: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.5
    """Pairs whose scores are nearer than this are not used."""
    chosen_source: Literal["sample", "demonstration"] = "sample"
    """Where the chosen reply comes from: sample (the best one) or demonstration (the prompt's own, scored too)."""
    pairs_file: OptionalPath = ""
    """Parquet or JSONL of pairs made before (`duet pairs`); empty: pairs are made of each iteration's samples."""


class AlgorithmSection(Section):
    name: Literal["grpo", "dpo"] = "grpo"
    """grpo (policy gradient by routes) or dpo (pairs)."""
    score_routing: Any = "wavalign"
    """wavalign, full, alpo, anchor_only, or a table such as [{score: total, channel: text, weight: 1.0}]."""
    advantage_estimator: AdvantageEstimator = "grpo"
    """grpo (by the group's mean and deviation), dr_grpo (by its mean), or rloo (by the mean of the others)."""
    loss_aggregation: Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"] = "seq-mean-token-mean"
    """seq-mean-token-mean (mean over a reply's tokens, replies, groups), token-mean (mean over all tokens), or
    seq-mean-token-sum-norm (sum over tokens / `norm_length`, mean over replies)."""
    norm_length: Amount = 0
    """Tokens that seq-mean-token-sum-norm divides by; 0: rollout.max_new_tokens."""
    clip_eps_low: Share = 0.2
    """ε of the clipped ratio below 1."""
    clip_eps_high: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """ε above 1; none: as `clip_eps_low`."""
    importance_sampling: Literal["truncated", "rollout", "none"] = "truncated"
    """truncated (ratio against the learner before the step, times a truncated importance weight against the sampler),
    rollout (ratio against the sampler), or none (as in the authors' released code)."""
    tis_cap: Annotated[float, Field(ge=1.0, le=1000.0)] = 2.0
    """Maximum importance weight of a token."""
    kl_coef_text: KLCoefficient = 0.01
    """β of the KL to the start model on text tokens."""
    kl_coef_speech: KLCoefficient = 0.01
    """The same on speech tokens."""
    boundary_channel: Literal["speech", "text"] = "speech"
    """Channel that begin- and end-of-speech tokens train with."""
    dpo: DPOSection = DPOSection()


class AnchorSection(Section):
    batch_size: Count = 16
    """Demonstrations an iteration."""
    text_weight: Weight = 1.0
    speech_weight: Weight = 1.0


class LoraSection(Section):
    r: Amount = 0
    """Rank of the adapters, which are trained in place of the model's own weights and are all that workers are sent; 0:
    no adapters, all weights are trained that `model.freeze` does not name."""
    lora_alpha: Annotated[float, Field(ge=1e-6, le=MANY)] = 16.0
    """Adapters are scaled by lora_alpha / r."""
    target_modules: list[str] = ["*_proj"]
    """Linear layers that get an adapter, as shell-style patterns of their names. Those that `model.freeze` names get
    none."""


class LearnerSection(ActorSection):
    num_cpus: NumCPUs = 0.5
    """Ray CPUs of each rank."""
    num_workers: Count = 2
    """Ranks of the DeepSpeed group (its world size)."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places ranks on nodes: PACK (as few as possible), SPREAD (as many as possible), STRICT_PACK (one, or they
    do not start), STRICT_SPREAD (a node each, or they do not start)."""
    num_threads: NumThreads = 1
    """CPU threads of each rank."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """DeepSpeed ZeRO stage."""
    learning_rate: Share = 1e-6
    betas: tuple[
        Annotated[float, Field(ge=0.0, le=0.999999)],
        Annotated[float, Field(ge=0.0, le=0.999999)],
    ] = (0.9, 0.95)
    adam_eps: Annotated[float, Field(ge=1e-30, le=1.0)] = 1e-8
    weight_decay: Share = 0.01
    max_grad_norm: Annotated[float, Field(ge=0.0, le=MANY)] = 1.2
    warmup_steps: Amount = 0
    """Steps of linear warm-up."""
    min_lr_ratio: Share = 1.0
    """Learning rate at the last iteration as a share of the highest (cosine); 1 keeps it constant."""
    max_tokens_per_micro_batch: Count = 8192
    """Tokens of a rank's forward and backward pass, padding included, approximately. A single row or pair may have
    more; with fewer rows than micro-batches on some rank, so may others."""
    sequence_packing: bool = True
    """Pack rows one behind another, without padding. False pads them, for a model whose attention cannot be replaced
    (transformers' AttentionInterface)."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer, and recompute the rest in the backward pass: less memory, a third more
    work."""
    lora: LoraSection = LoraSection()
    max_consecutive_skips: Count = 3
    """Consecutive steps with a loss or gradient that is not finite, which are skipped, after which the run stops."""
    start_timeout_s: Timeout = 600.0
    step_timeout_s: Timeout = 600.0


class ValidationSection(Section):
    num_recordings: Amount = 6
    """Validation prompts whose question and replies before and after training are written as audio."""
    recording_interval: Amount = 10
    """Iterations between answers to those prompts, and to as many training prompts that have a demonstration, recorded
    for listening; 0: never."""
    num_quality_samples: Amount = 12
    """Replies whose signal quality is measured."""


class MetricsSection(Section):
    host: str = "127.0.0.1"
    """Address that the controller and each rollout worker serve metrics on; 0.0.0.0 for all addresses."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """The controller's port; 0 takes any free port, as rollout workers do."""

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        try:
            good = bool(value.encode("idna")) and value.isascii() and value.isprintable()
        except UnicodeError:
            good = False
        if not good or " " in value:
            raise ValueError("is not the name or address of a host, such as 127.0.0.1")
        return value


ADDRESS = re.compile(r"auto|local|(ray://)?[A-Za-z0-9._-]+:[0-9]{1,5}|(ray://)?\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")


class ClusterSection(Section):
    address: str = ""
    """A Ray cluster to join; empty: RAY_ADDRESS if set, else a new one is started on this machine."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if value and not ADDRESS.fullmatch(value):
            raise ValueError("is not an address; allowed: HOST:PORT, ray://HOST:PORT, auto, local, or nothing")
        return value


class Config(Section):
    """The whole configuration, a section by field."""

    run: RunSection = RunSection()
    train: TrainSection = TrainSection()
    checkpoint: CheckpointSection = CheckpointSection()
    weight_sync: WeightSyncSection = WeightSyncSection()
    model: ModelSection
    data: DataSection
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection
    mix_ratio: MixRatioSection = MixRatioSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    anchor: AnchorSection = AnchorSection()
    learner: LearnerSection = LearnerSection()
    validation: ValidationSection = ValidationSection()
    metrics: MetricsSection = MetricsSection()
    cluster: ClusterSection = ClusterSection()

    @property
    def replies(self) -> int:
        """Replies an iteration."""
        return self.rollout.batch_size * self.rollout.n

    def yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


def longest_prompt(config: Config) -> int:
    """Tokens of a prompt that leaves room for the longest reply."""
    return config.model.max_model_len - config.rollout.max_new_tokens


def section_type(annotation: Any) -> type[Section] | None:
    """The model of a field that is a section; None for a value."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def config_keys(kind: type[Section] = Config, prefix: str = "") -> list[str]:
    """Every dotted key, sections included."""
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        if (below := section_type(field.annotation)) is not None:
            keys += config_keys(below, f"{prefix}{name}.")
    return keys
