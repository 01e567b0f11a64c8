"""Builds the parts of a run from its configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.actor_pool import ActorPool
from cluster.placement import Placement
from configs.routes import ScoreRoute
from configs.schema import Config, Named
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
    return SamplingConfig(temperature=config.rollout.temperature, max_tokens=config.rollout.max_tokens)


def provenance(config: Config, inputs: RunInputs, raters: Mapping[str, str]) -> ReplyProvenance:
    """Return what determines samples and scores. raters: version of each rater."""
    r = config.rollout
    sampling = {
        "temperature": f"{r.temperature:g}",
        "top_p": f"{r.top_p:g}",
        "top_k": str(r.top_k),
        "max_tokens": str(r.max_tokens),
        "structure": "on" if is_constrained(config, inputs.family) else "off",
    }
    return ReplyProvenance(raters=raters, sampling=sampling)


def scoring(config: Config) -> ScoringConfig:
    """Return how scores are combined."""
    return ScoringConfig(total=config.reward.total, others=config.reward.scores, combine=config.reward.combine)


def routes(config: Config) -> list[ScoreRoute]:
    """Return the routing table; empty for DPO."""
    return config.preference.routes if config.preference.objective == "grpo" else []


def preference(config: Config, inputs: RunInputs) -> BatchBuilder:
    """Build the preference part of batches: GRPO or DPO."""
    p, structure = config.preference, reply_structure(config, inputs.family, inputs.vocabulary)
    if p.objective == "grpo":
        return GRPOBatchBuilder(
            routes=routes(config),
            boundary=p.boundary,
            average=p.average,
            constant=p.constant or config.rollout.max_tokens,
            structure=structure,
        )
    demonstrations = (
        DatasetIndex(inputs.demonstrations, "prompt_id", last=True) if p.pairs.chosen == "demonstration" else None
    )
    return DPOBatchBuilder(
        score=p.pairs.score,
        ties=p.pairs.ties or list(config.reward.total),
        margin=p.pairs.margin,
        structure=structure,
        demonstrations=demonstrations,
        vocabulary=inputs.vocabulary,
        recorded=bool(inputs.pairs),
    )


def mix_ratio(config: Config, state: dict | None) -> MixRatio:
    """Build λ from its state in a checkpoint, or at its start."""
    m = config.mix
    return MixRatio(
        MixRatioConfig(
            mode=m.mode,
            fixed=m.fixed,
            switch=m.switch,
            largest=m.largest,
            slope=m.slope,
            threshold=m.threshold,
            lowest_score=m.lowest_score,
            highest_score=m.highest_score,
            smoothing=m.smoothing,
            first=m.first,
            per_group=m.per_group,
        ),
        MixRatioState(**state) if state is not None else None,
    )


def engine_settings(config: Config, chosen: Family) -> EngineConfig:
    """Return the settings of a worker's engine."""
    r = config.rollout
    return EngineConfig(
        checkpoint=config.model.checkpoint,
        dtype=config.model.dtype,
        max_model_len=config.model.max_length,
        max_num_seqs=r.max_sequences,
        constrained=is_constrained(config, chosen),
        in_process=r.in_process,
        num_threads=r.threads,
        cpu_kv_cache_gib=r.kv_cache_gib,
        gpu_memory_utilization=r.gpu_memory_share,
        tensor_parallel_size=r.tensor_parallel,
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
        num_workers=r.workers,
        resources=required_resources(r),
        start_timeout_s=r.start_seconds,
        generate_timeout_s=r.sample_seconds,
        max_groups=r.max_sequences,  # a group may have one reply; surplus replies wait in the engine
        sync_timeout_s=r.sync_seconds,
        max_logprob_diff=r.probe_limit,
        heartbeat_timeout_s=r.beat_seconds,
        metrics_host=config.metrics.host,
        fixed=fixed,
    )
    return RolloutPool(pool, engine_settings(config, chosen), chosen, config.run.seed, emit_event, pools)


def reward_pool(
    config: Config, chosen: Family, emit_event: EventSink, pools: list[ActorPool] | None = None
) -> RewardPool:
    """Build the reward pool, with its decoder pool if configured."""

    def part(named: Named) -> ClassSpec:
        return ClassSpec(use=named.use, arguments=dict(named.arguments), name=getattr(named, "name", ""))

    r, d = config.reward, config.reward.decoders
    decoders = DecoderConfig(decoders=d.members, needs=required_resources(d), start_seconds=d.start_seconds)
    settings = RewardServerConfig(
        servers=r.servers,
        needs=required_resources(r),
        checkpoint=config.model.checkpoint,
        codec=part(r.codec),
        raters=tuple(part(rater) for rater in r.raters),
        start_seconds=r.start_seconds,
        score_seconds=r.score_seconds,
        beat_seconds=r.beat_seconds,
        decoders=decoders if d.members else None,
    )
    return RewardPool(settings, chosen, emit_event, pools)


def build_objective(config: Config) -> Objective:
    """Build the loss."""
    p, a = config.preference, config.anchor
    return Objective(
        routes=tuple(RouteLoss(channel=r.channel, weight=r.weight) for r in routes(config)),
        clip=p.clip,
        clip_high=p.clip if p.clip_high is None else p.clip_high,
        ratio=p.ratio,
        cap=p.importance_cap,
        kl_text=p.kl_text if routes(config) else 0.0,
        kl_speech=p.kl_speech if routes(config) else 0.0,
        pairs=PairLoss(channel=p.pairs.channel, beta=p.pairs.beta) if p.objective == "dpo" else None,
        boundary=p.boundary,
        anchor_text=a.weight_text,
        anchor_speech=a.weight_speech,
    )


def learner_place(config: Config) -> Placement:
    """Request the resources of all ranks together."""
    c = config.learner
    return Placement("learner", *[required_resources(c)] * c.ranks, strategy=c.strategy)


def rank_settings(config: Config, run: str) -> LearnerConfig:
    """Return the settings of a learner rank. run: name of the run."""
    c = config.learner
    weights = Path(config.run.directory) / run / "weights"
    return LearnerConfig(
        checkpoint=config.model.checkpoint,
        run=run,
        dtype=config.model.dtype,
        zero_stage=c.zero_stage,
        learning_rate=c.learning_rate,
        betas=c.betas,
        epsilon=c.epsilon,
        weight_decay=c.weight_decay,
        gradient_clip=c.gradient_clip,
        warmup=c.warmup,
        steps=config.run.iterations,
        final_rate=c.final_rate,
        packing=c.packing,
        gradient_checkpointing=c.gradient_checkpointing,
        threads=c.threads,
        temperature=config.rollout.temperature,
        frozen=tuple(family(config.model.family).parameters(config.model.frozen)),
        gpu=c.gpus > 0,
        lora=lora_settings(config),
        trust_remote_code=config.model.trust_remote_code,
        exchange=config.run.exchange,
        folder=weights if config.run.exchange == "directory" else None,
    )


def learner_group(config: Config, chosen: Family, run: str, place: Placement) -> LearnerGroup:
    """Start the ranks of the learner in a placement. run: name of the run."""
    c = config.learner
    group = LearnerGroupConfig(
        ranks=c.ranks,
        start_seconds=c.start_seconds,
        step_seconds=c.step_seconds,
        micro_batch_tokens=c.micro_batch_tokens,
        skips_in_a_row=c.skips_in_a_row,
        faults=Path(config.run.directory) / run / "faults",
    )
    return LearnerGroup(group, rank_settings(config, run), chosen, build_objective(config), place)
