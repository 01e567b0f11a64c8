"""Builds the parts of a run from its configuration, and checks beforehand that they can be built."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from controller.config import Config, Named
from controller.mix import MixRatio, MixSettings
from controller.preference import PairedReplies, PolicyGradient, Preference, Structure
from controller.routing import Route as ScoreRoute
from controller.statistics import Scoring
from learner.freezing import frozen_names
from learner.group import GroupSettings, LearnerGroup
from learner.rank import RankSettings
from learner.step import Objective, PairLoss, Route
from reward.server import Part, RewardPool, ServerSettings, load
from rollout.engine import EngineSettings, SamplingSettings
from rollout.pool import PoolSettings, RolloutPool
from speech.errors import InputError
from speech.families import Family, family
from speech.interleave import check, kind_table
from speech.records import Demonstration, Pair, Prompt, read_demonstrations, read_pairs, read_prompts
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads from disk, checked."""

    family: Family
    vocabulary: Vocabulary
    prompts: list[Prompt]
    demonstrations: list[Demonstration]
    held_out: dict[str, list[Prompt]]
    pairs: list[Pair]
    """From `preference.pairs.file`; empty when replies are sampled."""


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
        pairs=read_pairs(Path(config.preference.pairs.file), vocabulary) if config.preference.pairs.file else [],
    )
    _check_weights(config)
    _check_reward(config, vocabulary)
    _check_replies(config, inputs)
    longest = max(len(p.token_ids) for p in [*inputs.prompts, *(p for ps in inputs.held_out.values() for p in ps)])
    if longest + config.rollout.max_tokens > config.model.max_length:
        raise InputError(
            f"model.max_length: {config.model.max_length} is too short for the longest prompt, {longest} tokens, plus "
            f"rollout.max_tokens = {config.rollout.max_tokens}"
        )
    source = config.preference.pairs.file or config.data.prompts
    if len(inputs.pairs or inputs.prompts) < config.rollout.prompts:
        raise InputError(
            f"rollout.prompts: {config.rollout.prompts} an iteration, but {source} has only "
            f"{len(inputs.pairs or inputs.prompts)}"
        )
    return inputs


def _check_weights(config: Config) -> None:
    """The checkpoint's weights are there, and `model.frozen` names some of them."""
    directory = Path(config.model.checkpoint)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(f"model.checkpoint: {directory} holds no *.safetensors file")
    if config.model.frozen:
        names = {"lm_head.weight"}  # not in the file when it is tied to the embedding
        for file in files:
            try:
                with safe_open(file, framework="numpy") as weights:
                    names.update(weights.keys())
            except (SafetensorError, OSError) as error:
                raise InputError(f"model.checkpoint: {file} cannot be read: {error}") from error
        frozen_names(sorted(names), config.model.frozen)


def _check_replies(config: Config, inputs: Inputs) -> None:
    """Replies to learn from must fit into the model and, where sampling is held to a structure, follow it."""
    wanted = config.preference.objective == "dpo" and config.preference.pairs.chosen == "demonstration"
    if wanted and {d.prompt_id for d in inputs.demonstrations}.isdisjoint(prompt.id for prompt in inputs.prompts):
        raise InputError(
            f"preference.pairs.chosen: demonstration, but no prompt of {config.data.prompts} has one in "
            f"{config.data.demonstrations} (column prompt_id)"
        )
    held_to = structure(config, inputs.family, inputs.vocabulary)
    places = [(config.data.demonstrations, "reply_ids", d.prompt_ids, d.reply_ids) for d in inputs.demonstrations]
    for pair in inputs.pairs:
        for field, ids in (("chosen_ids", pair.chosen_ids), ("rejected_ids", pair.rejected_ids)):
            places.append((config.preference.pairs.file, field, pair.prompt_ids, ids))
    seen: dict[str, int] = {}
    for file, field, prompt_ids, ids in places:
        row = seen[file + field] = seen.get(file + field, 0) + 1
        if len(prompt_ids) + len(ids) > config.model.max_length:
            raise InputError(
                f"{file} row {row}: prompt and {field} have {len(prompt_ids) + len(ids)} tokens, more than "
                f"model.max_length = {config.model.max_length}"
            )
        defect = check(ids, *held_to) if held_to else None
        if defect is not None:
            raise InputError(
                f"{file} row {row}: {field} does not follow the structure of family {inputs.family.name}: {defect}"
            )


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


def structure(config: Config, chosen: Family, vocabulary: Vocabulary) -> Structure | None:
    """What sampling is held to: the family's pattern and the kinds of all ids; None when it is free."""
    return (chosen.interleave, kind_table(vocabulary)) if constrained(config, chosen) else None


def sampling(config: Config) -> SamplingSettings:
    return SamplingSettings(temperature=config.rollout.temperature, max_tokens=config.rollout.max_tokens)


def scoring(config: Config) -> Scoring:
    return Scoring(total=config.reward.total, others=config.reward.scores, combine=config.reward.combine)


def routes(config: Config) -> list[ScoreRoute]:
    """The routing table; empty where pairs train."""
    return config.preference.routes if config.preference.objective == "grpo" else []


def preference(config: Config, inputs: Inputs) -> Preference:
    """What makes the preference part of a batch: policy gradient or pairs."""
    p, held_to = config.preference, structure(config, inputs.family, inputs.vocabulary)
    if p.objective == "grpo":
        return PolicyGradient(
            routes=routes(config),
            boundary=p.boundary,
            average=p.average,
            constant=p.constant or config.rollout.max_tokens,
            structure=held_to,
        )
    by_prompt = {d.prompt_id: d for d in inputs.demonstrations} if p.pairs.chosen == "demonstration" else None
    return PairedReplies(
        score=p.pairs.score,
        ties=p.pairs.ties or list(config.reward.total),
        margin=p.pairs.margin,
        structure=held_to,
        demonstrations=by_prompt,
        vocabulary=inputs.vocabulary,
        recorded=bool(inputs.pairs),
    )


def mix_ratio(config: Config) -> MixRatio:
    m = config.mix
    return MixRatio(
        MixSettings(
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
        routes=tuple(Route(channel=r.channel, weight=r.weight) for r in routes(config)),
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
        frozen=tuple(config.model.frozen),
        gpu=c.gpus > 0,
    )
    group = GroupSettings(
        ranks=c.ranks, cpus=c.cpus, gpus=c.gpus, start_seconds=c.start_seconds, step_seconds=c.step_seconds
    )
    return LearnerGroup(group, rank, chosen, objective)
