"""Builds the parts of a run from its configuration, and checks beforehand that they can be built."""

from dataclasses import dataclass
from pathlib import Path

from controller.config import Config, Named
from controller.mix import MixRatio, MixSettings
from controller.statistics import RouteSettings
from learner.group import GroupSettings, LearnerGroup
from learner.rank import RankSettings
from learner.step import Objective, Route
from reward.server import Part, RewardPool, ServerSettings, load
from rollout.engine import EngineSettings, SamplingSettings
from rollout.pool import PoolSettings, RolloutPool
from speech.errors import InputError
from speech.families import Family, family
from speech.records import Demonstration, Prompt, read_demonstrations, read_prompts
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads from disk, checked."""

    family: Family
    vocabulary: Vocabulary
    prompts: list[Prompt]
    demonstrations: list[Demonstration]
    held_out: dict[str, list[Prompt]]


def read_inputs(config: Config) -> Inputs:
    """Reads the data. Raises InputError naming what does not fit."""
    chosen = family(config.model.family)
    vocabulary = Vocabulary.from_checkpoint(Path(config.model.checkpoint), chosen.tokens)
    inputs = Inputs(
        family=chosen,
        vocabulary=vocabulary,
        prompts=read_prompts(Path(config.data.prompts), vocabulary),
        demonstrations=read_demonstrations(Path(config.data.demonstrations), vocabulary),
        held_out={name: read_prompts(Path(path), vocabulary) for name, path in config.data.held_out.items()},
    )
    _check_reward(config, vocabulary)
    longest = max(len(p.token_ids) for p in [*inputs.prompts, *(p for ps in inputs.held_out.values() for p in ps)])
    if longest + config.rollout.max_tokens > config.model.max_length:
        raise InputError(
            f"model.max_length: {config.model.max_length} is too short for the longest prompt, {longest} tokens, plus "
            f"rollout.max_tokens = {config.rollout.max_tokens}"
        )
    if len(inputs.prompts) < config.rollout.prompts:
        raise InputError(
            f"rollout.prompts: {config.rollout.prompts} an iteration, but {config.data.prompts} has only "
            f"{len(inputs.prompts)}"
        )
    return inputs


def _check_reward(config: Config, vocabulary: Vocabulary) -> None:
    """What the reward servers will load must be there, and the codec must have the checkpoint's codes."""
    for key, named in [("codec", config.reward.codec), *((f"raters.{r.name}", r) for r in config.reward.raters)]:
        try:
            found = load(named.use)
        except InputError as error:
            raise InputError(f"reward.{key}: {error}") from error
        if key == "codec":
            try:
                codes = found.load(Path(named.arguments["path"])).codebook
            except (OSError, AttributeError, TypeError) as error:
                raise InputError(
                    f"reward.codec: {named.use} does not load {named.arguments['path']}: {error}"
                ) from error
            if codes != vocabulary.codebook:
                raise InputError(
                    f"reward.codec: the codec has {codes} codes, the tokenizer of {config.model.checkpoint} has "
                    f"{vocabulary.codebook} speech tokens"
                )


def constrained(config: Config, chosen: Family) -> bool:
    """Whether sampling is held to the family's interleave structure."""
    return config.rollout.structure == "on" or (config.rollout.structure == "auto" and not chosen.follows_pattern)


def sampling(config: Config) -> SamplingSettings:
    return SamplingSettings(temperature=config.rollout.temperature, max_tokens=config.rollout.max_tokens)


def routes(config: Config) -> list[RouteSettings]:
    return [RouteSettings(score=r.score, channel=r.channel, weight=r.weight) for r in config.preference.routes]


def mix_ratio(config: Config) -> MixRatio:
    m = config.mix
    return MixRatio(
        MixSettings(
            mode=m.mode,
            fixed=m.fixed,
            largest=m.largest,
            slope=m.slope,
            threshold=m.threshold,
            lowest_score=m.lowest_score,
            highest_score=m.highest_score,
            smoothing=m.smoothing,
        )
    )


def rollout_pool(config: Config, chosen: Family) -> RolloutPool:
    r = config.rollout
    engine = EngineSettings(
        checkpoint=config.model.checkpoint,
        dtype=config.model.dtype,
        max_length=config.model.max_length,
        max_sequences=r.max_sequences,
        constrained=constrained(config, chosen),
        in_process=r.in_process,
        threads=r.threads,
        kv_cache_gib=r.kv_cache_gib,
        gpu_memory_share=r.gpu_memory_share,
        tensor_parallel=r.tensor_parallel,
    )
    pool = PoolSettings(
        workers=r.workers,
        cpus=r.cpus,
        gpus=r.gpus,
        start_seconds=r.start_seconds,
        sample_seconds=r.sample_seconds,
        sync_seconds=r.sync_seconds,
        probe_limit=r.probe_limit,
    )
    return RolloutPool(pool, engine, chosen, config.run.seed)


def reward_pool(config: Config, chosen: Family) -> RewardPool:
    def part(named: Named) -> Part:
        return Part(use=named.use, arguments=dict(named.arguments), name=getattr(named, "name", ""))

    r = config.reward
    settings = ServerSettings(
        servers=r.servers,
        cpus=r.cpus,
        checkpoint=config.model.checkpoint,
        codec=part(r.codec),
        raters=tuple(part(rater) for rater in r.raters),
        start_seconds=r.start_seconds,
        score_seconds=r.score_seconds,
    )
    return RewardPool(settings, chosen)


def learner_group(config: Config, chosen: Family, run: str) -> LearnerGroup:
    c, p, a = config.learner, config.preference, config.anchor
    objective = Objective(
        routes=tuple(Route(channel=r.channel, weight=r.weight) for r in p.routes),
        clip=p.clip,
        ratio=p.ratio,
        kl_text=p.kl_text if p.routes else 0.0,
        kl_speech=p.kl_speech if p.routes else 0.0,
        boundary=p.boundary,
        anchor_text=a.weight_text,
        anchor_speech=a.weight_speech,
    )
    rank = RankSettings(
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
        micro_batch_rows=c.micro_batch_rows,
        threads=c.threads,
        temperature=config.rollout.temperature,
        gpu=c.gpus > 0,
    )
    group = GroupSettings(
        ranks=c.ranks, cpus=c.cpus, gpus=c.gpus, start_seconds=c.start_seconds, step_seconds=c.step_seconds
    )
    return LearnerGroup(group, rank, chosen, objective)
