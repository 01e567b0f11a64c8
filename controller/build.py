"""Builds the parts of a run from its configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.actor_pool import ActorPool
from cluster.placement import Placement
from configs.routes import ScoreRoute
from configs.schema import ClassSection, Config
from configs.validate import required_resources
from controller.batch import BatchBuilder, DPOBatchBuilder, GRPOBatchBuilder
from controller.checkpoint_checks import lora_settings
from controller.inputs import RunInputs, is_constrained, reply_structure
from controller.mix_ratio import MixRatio, MixRatioConfig, MixRatioState
from data.dataset import DatasetIndex
from learner.config import LearnerConfig, Objective, PairLoss, RouteLoss
from learner.group import LearnerGroup, LearnerGroupConfig
from observability.reply_schema import ReplyProvenance
from reward.decoder_pool import DecoderConfig
from reward.pool import RewardPool
from reward.scoring import ScoringConfig
from reward.server import RewardServerConfig
from rollout.pool import RolloutPool, RolloutPoolConfig
from rollout.vllm_engine import EngineConfig, SamplingConfig
from speech.families import Family, family
from speech.registry import ClassSpec

EventSink = Callable[..., None]
"""Takes events: a kind and fields."""


def sampling(config: Config) -> SamplingConfig:
    """Return the sampling parameters of training."""
    return SamplingConfig(temperature=config.rollout.temperature, max_tokens=config.rollout.max_new_tokens)


def provenance(config: Config, inputs: RunInputs, raters: Mapping[str, str]) -> ReplyProvenance:
    """Return what determines samples and scores. raters: version of each rater."""
    r = config.rollout
    sampling = {
        "temperature": f"{r.temperature:g}",
        "top_p": f"{r.top_p:g}",
        "top_k": str(r.top_k),
        "max_tokens": str(r.max_new_tokens),
        "structure": "on" if is_constrained(config, inputs.family) else "off",
    }
    return ReplyProvenance(raters=raters, sampling=sampling)


def scoring(config: Config) -> ScoringConfig:
    """Return how scores are combined."""
    return ScoringConfig(total=config.reward.weights, others=config.reward.composites, combine=config.reward.aggregate)


def routes(config: Config) -> list[ScoreRoute]:
    """Return the routing table; empty for DPO."""
    return config.algorithm.score_routing if config.algorithm.name == "grpo" else []


def preference(config: Config, inputs: RunInputs) -> BatchBuilder:
    """What makes the preference part of a batch: policy gradient or pairs."""
    p, held_to = config.algorithm, reply_structure(config, inputs.family, inputs.vocabulary)
    if p.name == "grpo":
        return GRPOBatchBuilder(
            routes=routes(config),
            boundary=p.boundary_channel,
            average=p.loss_aggregation,
            constant=p.norm_length or config.rollout.max_new_tokens,
            structure=held_to,
        )
    shown = (
        DatasetIndex(inputs.demonstrations, "prompt_id", last=True) if p.dpo.chosen_source == "demonstration" else None
    )
    return DPOBatchBuilder(
        score=p.dpo.score,
        ties=p.dpo.tie_breakers or list(config.reward.weights),
        margin=p.dpo.min_gap,
        structure=held_to,
        demonstrations=shown,
        vocabulary=inputs.vocabulary,
        recorded=bool(inputs.pairs),
    )


def mix_ratio(config: Config, state: dict | None) -> MixRatio:
    """λ as it was left, or at its start."""
    return MixRatio(MixRatioConfig.from_config(config), MixRatioState(**state) if state is not None else None)


def engine_settings(config: Config, chosen: Family) -> EngineConfig:
    """Return the settings of a worker's engine."""
    r = config.rollout
    return EngineConfig(
        checkpoint=config.model.path,
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        max_num_seqs=r.max_num_seqs,
        constrained=is_constrained(config, chosen),
        in_process=r.engine_in_process,
        num_threads=r.num_threads,
        cpu_kv_cache_gib=r.cpu_kv_cache_gib,
        gpu_memory_utilization=r.gpu_memory_utilization,
        tensor_parallel_size=r.tensor_parallel_size,
        trust_remote_code=config.model.trust_remote_code,
    )


def rollout_pool(
    config: Config,
    chosen: Family,
    emit_event: EventSink,
    pools: list[ActorPool] | None = None,
    *,
    fixed: bool = False,
) -> RolloutPool:
    """Build the rollout pool. fixed: workers keep the checkpoint's weights, without a learner."""
    r = config.rollout
    pool = RolloutPoolConfig(
        num_workers=r.num_workers,
        resources=required_resources(r),
        start_timeout_s=r.start_timeout_s,
        generate_timeout_s=r.generate_timeout_s,
        max_groups=r.max_num_seqs,  # a group may be of one reply; what is too many waits in the engine
        sync_timeout_s=r.sync_timeout_s,
        max_logprob_diff=config.weight_sync.max_logprob_diff,
        heartbeat_timeout_s=r.heartbeat_timeout_s,
        metrics_host=config.metrics.host,
        fixed=fixed,
    )
    return RolloutPool(pool, engine_settings(config, chosen), chosen, config.run.seed, emit_event, pools)


def reward_pool(
    config: Config, chosen: Family, emit_event: EventSink, pools: list[ActorPool] | None = None
) -> RewardPool:
    """Build the reward pool, with its decoder pool if configured."""

    def part(named: ClassSection) -> ClassSpec:
        return ClassSpec(target=named.target, kwargs=dict(named.kwargs), name=getattr(named, "name", ""))

    r, d = config.reward, config.reward.decoders
    decoders = DecoderConfig(decoders=d.num_workers, needs=required_resources(d), start_seconds=d.start_timeout_s)
    settings = RewardServerConfig(
        servers=r.num_servers,
        needs=required_resources(r),
        checkpoint=config.model.path,
        codec=part(r.codec),
        raters=tuple(part(rater) for rater in r.functions),
        start_seconds=r.start_timeout_s,
        score_seconds=r.score_timeout_s,
        beat_seconds=r.heartbeat_timeout_s,
        decoders=decoders if d.num_workers else None,
    )
    return RewardPool(settings, chosen, emit_event, pools)


def build_objective(config: Config) -> Objective:
    """The loss."""
    p, a = config.algorithm, config.anchor
    return Objective(
        routes=tuple(RouteLoss(channel=r.channel, weight=r.weight) for r in routes(config)),
        clip=p.clip_eps_low,
        clip_high=p.clip_eps_low if p.clip_eps_high is None else p.clip_eps_high,
        ratio=p.importance_sampling,
        cap=p.tis_cap,
        kl_text=p.kl_coef_text if routes(config) else 0.0,
        kl_speech=p.kl_coef_speech if routes(config) else 0.0,
        pairs=PairLoss(channel=p.dpo.channel, beta=p.dpo.beta) if p.name == "dpo" else None,
        boundary=p.boundary_channel,
        anchor_text=a.text_weight,
        anchor_speech=a.speech_weight,
    )


def learner_place(config: Config) -> Placement:
    """Request the resources of all ranks together."""
    c = config.learner
    return Placement("learner", *[required_resources(c)] * c.num_workers, strategy=c.placement_strategy)


def rank_settings(config: Config, run: str) -> LearnerConfig:
    """Return the settings of a learner rank. run: name of the run."""
    c = config.learner
    weights = Path(config.run.directory) / run / "weights"
    return LearnerConfig(
        checkpoint=config.model.path,
        run=run,
        dtype=config.model.dtype,
        zero_stage=c.zero_stage,
        learning_rate=c.learning_rate,
        betas=c.betas,
        epsilon=c.adam_eps,
        weight_decay=c.weight_decay,
        gradient_clip=c.max_grad_norm,
        warmup=c.warmup_steps,
        steps=config.train.num_steps,
        final_rate=c.min_lr_ratio,
        packing=c.sequence_packing,
        gradient_checkpointing=c.gradient_checkpointing,
        threads=c.num_threads,
        temperature=config.rollout.temperature,
        frozen=tuple(family(config.model.family).parameters(config.model.freeze)),
        gpu=c.num_gpus > 0,
        lora=lora_settings(config),
        trust_remote_code=config.model.trust_remote_code,
        exchange=config.weight_sync.backend,
        folder=weights if config.weight_sync.backend == "filesystem" else None,
    )


def learner_group(config: Config, chosen: Family, run: str, place: Placement) -> LearnerGroup:
    """Start the ranks of the learner in a placement. run: name of the run."""
    c = config.learner
    group = LearnerGroupConfig(
        ranks=c.num_workers,
        start_seconds=c.start_timeout_s,
        step_seconds=c.step_timeout_s,
        micro_batch_tokens=c.max_tokens_per_micro_batch,
        skips_in_a_row=c.max_consecutive_skips,
        faults=Path(config.run.directory) / run / "faults",
    )
    return LearnerGroup(group, rank_settings(config, run), chosen, build_objective(config), place)
