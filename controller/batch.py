"""Builds training batches from scored replies, demonstrations and recorded pairs. Pure.

The learner sums weight · term over tokens. Every mean in the loss is therefore a weight computed here, where the whole
batch is known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from configs.routes import ScoreRoute
from controller.mix_ratio import MixRatioStats
from data import pairing
from learner.group import StepResult
from learner.micro_batches import Item, TrainingPair, TrainingSample
from observability.iteration import IterationStats
from observability.speech_health import speech_health
from reward.scoring import ScoredReply, mean_scores, missing_reasons
from reward.types import Score, Scorecard
from rollout.worker import SyncReport
from speech.grammar import Structure, allowed_masks_of, check_reply_grammar
from speech.types import Demonstration, Finish, PreferencePair, Prompt, Reply, ReplyGroup, ReplyOrigin
from speech.vocabulary import Vocabulary, select

AVERAGES = ("seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm")


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """The preference part of a batch."""

    items: list[Item]
    uses: list[list[str | None]]
    """Role by group and reply, for the records: "advantage", "chosen", "rejected"; None: no preference gradient."""


class BatchBuilder(Protocol):
    """Builds a batch from scored replies."""

    def examples(self, prompts: Sequence[Prompt]) -> list[ReplyGroup]:
        """Return further replies to these prompts to score, which the policy did not sample."""
        ...

    def batch(
        self,
        groups: Sequence[ReplyGroup],
        judged: Sequence[Sequence[ScoredReply]],
        examples: Mapping[str, ScoredReply],
        group_weights: Sequence[float],
    ) -> TrainingBatch:
        """Build the batch. examples: scored examples by prompt id. group_weights: relative weight of each group."""
        ...


def token_weights(counts: Sequence[Sequence[int]], average: str, constant: int) -> list[list[float]]:
    """Return the weight of each token, by group and reply; 0 for replies without tokens.

    A group without selected tokens gives no gradient and is not counted (method §7, rule 4).

    Args:
        counts: Selected tokens of each reply, by group.
        average: Normalization (method §3).
            "seq-mean-token-mean": mean over a reply's tokens, then over a group's replies, then over groups (GRPO).
            "token-mean": mean over all tokens of the batch (DAPO, arXiv 2503.14476).
            "seq-mean-token-sum-norm": sum over a reply's tokens / constant, mean over all replies (Dr. GRPO, arXiv
                             2503.20783).
        constant: Divisor of "seq-mean-token-sum-norm".
    """
    if average not in AVERAGES:
        raise ValueError(f"unknown average {average!r}; allowed: {', '.join(AVERAGES)}")
    groups = sum(any(group) for group in counts)
    tokens, replies = sum(map(sum, counts)), sum(len(group) for group in counts if any(group))

    def weight(count: int, group: Sequence[int]) -> float:
        if not count:
            return 0.0
        if average == "seq-mean-token-mean":
            return 1.0 / (groups * len(group) * count)
        return 1.0 / tokens if average == "token-mean" else 1.0 / (constant * replies)

    return [[weight(count, group) for count in group] for group in counts]


@dataclass(frozen=True, kw_only=True)
class GRPOBatchBuilder:
    """Builds a sample from every reply with an advantage. Every route and every KL term has its own normalizer."""

    routes: Sequence[ScoreRoute]
    boundary: str
    average: str
    constant: int
    structure: Structure | None

    def examples(self, prompts: Sequence[Prompt]) -> list[ReplyGroup]:
        return []

    def batch(
        self,
        groups: Sequence[ReplyGroup],
        judged: Sequence[Sequence[ScoredReply]],
        examples: Mapping[str, ScoredReply],
        group_weights: Sequence[float],
    ) -> TrainingBatch:
        by_route = [self._weights(judged, route.channel, index) for index, route in enumerate(self.routes)]
        trained = [
            [any(weights[g][r] > 0 for weights in by_route) for r in range(len(replies))]
            for g, replies in enumerate(judged)
        ]
        kl = [self._weights(judged, channel, None, trained) for channel in ("text", "speech")]
        items: list[Item] = []
        used = [j.reply for g, replies in enumerate(judged) for r, j in enumerate(replies) if trained[g][r]]
        allowed = iter(_allowed(used, self.structure))
        for g, (group, replies, group_weight) in enumerate(zip(groups, judged, group_weights, strict=True)):
            for r, j in enumerate(replies):
                if trained[g][r]:
                    text, speech = (group_weight * weights[g][r] for weights in kl)
                    items.append(
                        TrainingSample(
                            **_tokens(group.prompt, j.reply, next(allowed)),
                            rollout_logprobs=j.reply.logps,
                            advantages=tuple(a or 0.0 for a in j.advantages),
                            weights=tuple(group_weight * weights[g][r] for weights in by_route),
                            kl_weights=(text, speech),
                        )
                    )
        return TrainingBatch(
            items=items, uses=[["advantage" if used else None for used in replies] for replies in trained]
        )

    def _weights(
        self,
        judged: Sequence[Sequence[ScoredReply]],
        channel: str,
        route: int | None,
        among: Sequence[Sequence[bool]] | None = None,
    ) -> list[list[float]]:
        """Return token weights over the replies with an advantage on the route, 0 for the others. route: None uses the
        replies marked in `among`."""
        included = [
            [among[g][r] if among else route is not None and j.advantages[route] is not None for r, j in enumerate(rs)]
            for g, rs in enumerate(judged)
        ]
        counts = [
            [
                int(select(j.reply.channels, channel, boundary=self.boundary).sum())
                for j, taken in zip(replies, parts, strict=True)
                if taken
            ]
            for replies, parts in zip(judged, included, strict=True)
        ]
        found = [iter(weights) for weights in token_weights(counts, self.average, self.constant)]
        return [
            [next(weights) if taken else 0.0 for taken in parts] for weights, parts in zip(found, included, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class DPOBatchBuilder:
    """Builds a pair from the best and worst reply to a prompt, if their scores differ enough (method §5)."""

    score: str
    ties: Sequence[str]
    margin: float
    structure: Structure | None
    demonstrations: Mapping[str, Demonstration] | None = None
    """Chosen replies by prompt id. None: the best sample is chosen."""
    vocabulary: Vocabulary
    recorded: bool = False
    """True if groups are pairs from a file, the chosen reply first."""

    def examples(self, prompts: Sequence[Prompt]) -> list[ReplyGroup]:
        """Return the demonstrations of these prompts as replies to score."""
        if self.demonstrations is None:
            return []
        known = [(prompt, self.demonstrations[prompt.id]) for prompt in prompts if prompt.id in self.demonstrations]
        return [ReplyGroup(prompt=prompt, replies=[self._as_reply(prompt, d)]) for prompt, d in known]

    def batch(
        self,
        groups: Sequence[ReplyGroup],
        judged: Sequence[Sequence[ScoredReply]],
        examples: Mapping[str, ScoredReply],
        group_weights: Sequence[float],
    ) -> TrainingBatch:
        uses: list[list[str | None]] = [[None] * len(replies) for replies in judged]
        found: list[tuple[TrainingSample, TrainingSample, float]] = []
        for group, replies, use, weight in zip(groups, judged, uses, group_weights, strict=True):
            candidates = list(replies)
            if self.demonstrations is not None:
                if group.prompt.id not in examples:
                    continue
                candidates.append(examples[group.prompt.id])
            chosen = self._choose(candidates)
            if chosen is None:
                continue
            better, worse = chosen
            for index, role in ((better, "chosen"), (worse, "rejected")):
                if index < len(use):
                    use[index] = role
            rows = [self._row(group.prompt, candidates[index].reply) for index in chosen]
            found.append((rows[0], rows[1], weight))
        return TrainingBatch(
            items=[TrainingPair(chosen=c, rejected=r, weight=weight / len(found)) for c, r, weight in found], uses=uses
        )

    def _choose(self, candidates: Sequence[ScoredReply]) -> tuple[int, int] | None:
        """Return the indices of the chosen and the rejected reply."""
        if self.recorded:
            return 0, 1
        scores = [j.number(self.score) for j in candidates]
        ties = [[j.number(name) for name in self.ties] for j in candidates]
        best = None if self.demonstrations is None else len(candidates) - 1
        found = pairing.choose_pair(scores, ties, self.margin, best=best)
        if found and np.array_equal(*(candidates[index].reply.token_ids for index in found)):
            return None
        return found

    def _row(self, prompt: Prompt, reply: Reply) -> TrainingSample:
        sampled = bool(np.isfinite(reply.logps).all())
        (allowed,) = _allowed([reply], self.structure)
        return TrainingSample(**_tokens(prompt, reply, allowed), rollout_logprobs=reply.logps if sampled else None)

    def _as_reply(self, prompt: Prompt, demonstration: Demonstration) -> Reply:
        return unsampled(prompt.id, demonstration.reply_ids, self.vocabulary, self.structure, ReplyOrigin.DEMONSTRATION)


def unsampled(
    prompt_id: str, ids: np.ndarray, vocabulary: Vocabulary, structure: Structure | None, origin: str, index: int = 0
) -> Reply:
    """Return ids [T] that this run did not sample as a Reply. Its log-probabilities are unknown: NaN."""
    return Reply(
        prompt_id=prompt_id,
        index=index,
        token_ids=ids,
        channels=vocabulary.channels(ids),
        logps=np.full(len(ids), np.nan, dtype=np.float32),
        weight_version=-1,
        finish=Finish.STOP if ids[-1] == vocabulary.end_reply else Finish.LENGTH,
        defect=check_reply_grammar(ids, *structure) if structure else None,
        worker=origin,
    )


def _allowed(replies: Sequence[Reply], structure: Structure | None) -> list[np.ndarray | None]:
    """Return the mask of allowed token kinds of each reply, int8 [T]. None: no restriction."""
    if structure is None:
        return [None] * len(replies)
    return [*allowed_masks_of([reply.token_ids for reply in replies], *structure)]


def _tokens(prompt: Prompt, reply: Reply, allowed: np.ndarray | None) -> dict:
    return {
        "prompt_ids": prompt.token_ids,
        "features": prompt.features,
        "reply_ids": reply.token_ids,
        "channels": reply.channels,
        "allowed": allowed,
    }


def anchor_rows(demonstrations: Sequence[Demonstration], vocabulary: Vocabulary) -> list[TrainingSample]:
    """Return one sample per demonstration, equally weighted."""
    return [
        TrainingSample(
            prompt_ids=d.prompt_ids,
            features=d.features,
            reply_ids=d.reply_ids,
            channels=vocabulary.channels(d.reply_ids),
            anchor_weight=1.0 / len(demonstrations),
        )
        for d in demonstrations
    ]


def describe_iteration(
    number: int,
    version: int,
    mix: MixRatioStats,
    judged: Sequence[Sequence[ScoredReply]],
    uses: Sequence[Sequence[str | None]],
    demonstrations: Sequence[Demonstration],
    learned: StepResult,
    syncs: dict[str, SyncReport],
    sync_bytes: int,
    seconds: dict[str, float],
    idle: dict[str, float],
) -> IterationStats:
    """Return the statistics of an iteration. version: weight version before its step. uses: role of each reply."""
    flat = [j for replies in judged for j in replies]
    staleness = max(
        (version - j.reply.weight_version for j in flat if j.reply.worker != ReplyOrigin.RECORDED), default=None
    )
    tally = learned.metrics
    preference, anchor = tally.total("loss_preference"), tally.total("loss_anchor")
    dropped = sum(use is None for replies in uses for use in replies)
    return IterationStats(
        iteration=number,
        weight_version=version,
        staleness=staleness,
        mix=mix.mix,
        mix_raw=mix.raw,
        mix_overridden=int(mix.overridden),
        gate_quality=mix.gate_quality,
        gate_information=mix.gate_information,
        loss=_number((1.0 - mix.mix) * (anchor or 0.0) + mix.mix * (preference or 0.0)),
        loss_preference=_number(preference) if dropped < len(flat) else None,
        loss_anchor=_number(anchor),
        kl_text=_number(tally.mean("kl_text")),
        kl_speech=_number(tally.mean("kl_speech")),
        entropy_text=_number(tally.mean("entropy_text")),
        entropy_speech=_number(tally.mean("entropy_speech")),
        logp_gap_text=None if staleness else _number(tally.maxima.get("logp_gap_text")),
        logp_gap_speech=None if staleness else _number(tally.maxima.get("logp_gap_speech")),
        probe_gap=float(np.max([report.logprob_diff for report in syncs.values()])),
        clip_fraction=tally.mean("clip_fraction"),
        gradient_norm=learned.gradient_norm,
        learning_rate=learned.learning_rate,
        steps_skipped=int(learned.skipped),
        pairs=sum(use == "rejected" for replies in uses for use in replies),
        pair_accuracy=tally.mean("pair_accuracy"),
        pair_margin=_number(tally.mean("pair_margin")),
        scores=mean_scores(flat),
        missing=missing_reasons(flat),
        replies=len(flat),
        replies_dropped=dropped,
        groups_dropped=sum(not any(replies) for replies in uses),
        replies_truncated=sum(j.reply.finish == Finish.LENGTH for j in flat),
        replies_malformed=sum(j.reply.finish == Finish.STOP and j.reply.defect is not None for j in flat),
        tokens_text=sum(j.reply.count("text") for j in flat),
        tokens_speech=sum(j.reply.count("speech") for j in flat),
        reply_seconds=sum(j.card.seconds for j in flat),
        speech=speech_health(flat),
        seconds=seconds | {"total": sum(seconds.values())},
        idle=idle,
        sync_bytes=sync_bytes,
        sync_bytes_per_second=sync_bytes / seconds["sync"],
        demonstrations=[d.prompt_id for d in demonstrations],
    )


def _number(value: float | None) -> float | None:
    """Return None for values that are not finite, such as those of a skipped step."""
    return value if value is not None and math.isfinite(value) else None


def group_of_pair(pair: PreferencePair, vocabulary: Vocabulary) -> tuple[ReplyGroup, list[Scorecard]]:
    """Return a recorded pair as a group of two replies, chosen first, with the scores from the file (method §5)."""
    prompt = Prompt(id=pair.prompt_id, token_ids=pair.prompt_ids, text="", facts={}, features=pair.features)
    replies, cards = [], []
    sides = ((pair.chosen_ids, pair.scores_chosen), (pair.rejected_ids, pair.scores_rejected))
    for index, (ids, scores) in enumerate(sides):
        replies.append(unsampled(pair.prompt_id, ids, vocabulary, None, ReplyOrigin.RECORDED, index))
        # The pair may be based on any score; `total` is the one that the file names total.
        found: dict[str, Score] = dict(scores)
        details = {"text": vocabulary.text(ids), "origin": pair.origin}
        cards.append(Scorecard(scores=found, details=details, seconds=0.0))
    return ReplyGroup(prompt=prompt, replies=replies), cards
