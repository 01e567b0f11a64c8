"""The anchor's part of a batch, and from a step to its record. Pure."""

import math
from collections.abc import Sequence

import numpy as np

from controller.iteration import Iteration
from controller.mix import MixReading
from controller.preference import RECORDED
from controller.sound import sound
from controller.statistics import Judged, mean_scores, missing_reasons
from learner.group import Learned
from learner.rows import Row
from rollout.worker import SyncReport
from speech.records import Demonstration, Finish
from speech.vocabulary import Vocabulary


def anchor_rows(demonstrations: Sequence[Demonstration], vocabulary: Vocabulary) -> list[Row]:
    """A row for each demonstration, equally weighted."""
    return [
        Row(
            prompt_ids=d.prompt_ids,
            features=d.features,
            reply_ids=d.reply_ids,
            channels=vocabulary.channels(d.reply_ids),
            anchor_weight=1.0 / len(demonstrations),
        )
        for d in demonstrations
    ]


def describe(
    number: int,
    version: int,
    mix: MixReading,
    judged: Sequence[Sequence[Judged]],
    uses: Sequence[Sequence[str | None]],
    demonstrations: Sequence[Demonstration],
    learned: Learned,
    syncs: dict[str, SyncReport],
    sync_bytes: int,
    seconds: dict[str, float],
    idle: dict[str, float],
) -> Iteration:
    """The record of an iteration. version: of the weights before its step. uses: what each reply served as."""
    flat = [j for replies in judged for j in replies]
    staleness = max((version - j.reply.weight_version for j in flat if j.reply.worker != RECORDED), default=None)
    tally = learned.tally
    preference, anchor = tally.total("loss_preference"), tally.total("loss_anchor")
    dropped = sum(use is None for replies in uses for use in replies)
    return Iteration(
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
        logp_gap_text=None if staleness else _number(tally.largest.get("logp_gap_text")),
        logp_gap_speech=None if staleness else _number(tally.largest.get("logp_gap_speech")),
        probe_gap=float(np.max([report.probe_gap for report in syncs.values()])),
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
        speech=sound(flat),
        seconds=seconds | {"total": sum(seconds.values())},
        idle=idle,
        sync_bytes=sync_bytes,
        sync_bytes_per_second=sync_bytes / seconds["sync"],
        demonstrations=[d.prompt_id for d in demonstrations],
    )


def _number(value: float | None) -> float | None:
    """None for what is not finite: those of a step that was skipped are no measurements."""
    return value if value is not None and math.isfinite(value) else None
