"""From judged replies and demonstrations to the learner's rows, and from a step to its record. Pure."""

from collections.abc import Sequence

import numpy as np

from controller.iteration import Iteration
from controller.mix import MixReading
from controller.statistics import Judged, mean_scores, missing_reasons
from learner.group import Learned
from learner.rows import Row
from reward.rater import Missing
from rollout.worker import SyncReport
from speech.channels import Channel
from speech.interleave import Interleave, allowed_sets
from speech.records import Demonstration, Finish, Group
from speech.vocabulary import Vocabulary


def preference_rows(
    groups: Sequence[Group],
    judged: Sequence[Sequence[Judged]],
    structure: tuple[Interleave, np.ndarray] | None,
) -> list[Row]:
    """A row for each reply with advantages, weighted to the mean over groups of the mean over replies.

    structure: the pattern and the kinds of all ids when sampling was held to them, else None.
    """
    contributing = [(g, [j for j in replies if j.advantages]) for g, replies in zip(groups, judged, strict=True)]
    contributing = [(group, replies) for group, replies in contributing if replies]
    return [
        Row(
            prompt_ids=group.prompt.token_ids,
            reply_ids=j.reply.token_ids,
            channels=j.reply.channels,
            weight=1.0 / (len(contributing) * len(replies)),
            allowed=allowed_sets(j.reply.token_ids, *structure) if structure else None,
            behaviour=j.reply.logps,
            advantages=j.advantages or (),
        )
        for group, replies in contributing
        for j in replies
    ]


def anchor_rows(demonstrations: Sequence[Demonstration], vocabulary: Vocabulary) -> list[Row]:
    """A row for each demonstration, equally weighted."""
    return [
        Row(
            prompt_ids=d.prompt_ids,
            reply_ids=d.reply_ids,
            channels=vocabulary.channels(d.reply_ids),
            weight=1.0 / len(demonstrations),
        )
        for d in demonstrations
    ]


def describe(
    number: int,
    version: int,
    mix: MixReading,
    judged: Sequence[Sequence[Judged]],
    learned: Learned,
    syncs: dict[str, SyncReport],
    sync_bytes: int,
    seconds: dict[str, float],
) -> Iteration:
    """The record of an iteration. version: of the weights that sampled it."""
    flat = [j for replies in judged for j in replies]
    cards = [j.card for j in flat]
    totals = [j.total for j in flat if not isinstance(j.total, Missing)]
    tally = learned.tally
    preference, anchor = tally.total("loss_preference"), tally.total("loss_anchor")
    dropped = sum(j.advantages is None for j in flat)
    return Iteration(
        iteration=number,
        weight_version=version,
        mix=mix.mix,
        mix_raw=mix.raw,
        gate_quality=mix.gate_quality,
        gate_information=mix.gate_information,
        loss=(1.0 - mix.mix) * (anchor or 0.0) + mix.mix * (preference or 0.0),
        loss_preference=preference if dropped < len(flat) else None,
        loss_anchor=anchor,
        kl_text=tally.mean("kl_text"),
        kl_speech=tally.mean("kl_speech"),
        entropy_text=tally.mean("entropy_text"),
        entropy_speech=tally.mean("entropy_speech"),
        logp_gap_text=tally.largest.get("logp_gap_text"),
        logp_gap_speech=tally.largest.get("logp_gap_speech"),
        probe_gap=float(np.max([report.probe_gap for report in syncs.values()])),
        clip_fraction=tally.mean("clip_fraction"),
        gradient_norm=learned.gradient_norm,
        learning_rate=learned.learning_rate,
        scores=mean_scores(cards) | {"total": float(np.mean(totals)) if totals else None},
        missing=missing_reasons(cards),
        replies=len(flat),
        replies_dropped=dropped,
        groups_dropped=sum(all(j.advantages is None for j in replies) for replies in judged),
        replies_truncated=sum(j.reply.finish == Finish.LENGTH for j in flat),
        replies_malformed=sum(j.reply.finish == Finish.STOP and j.reply.defect is not None for j in flat),
        tokens_text=sum(j.reply.count(Channel.TEXT) for j in flat),
        tokens_speech=sum(j.reply.count(Channel.SPEECH) for j in flat),
        reply_seconds=sum(card.seconds for card in cards),
        seconds=seconds | {"total": sum(seconds.values())},
        sync_bytes=sync_bytes,
    )
