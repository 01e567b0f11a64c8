"""Parquet schema of recorded replies: tokens, worker, scores and training role (method §7, rule 9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from common.secrets import hide_secrets
from reward.scoring import UNRATED, ScoredReply
from reward.types import MissingScore, Scorecard
from speech.types import Finish, Reply, ReplyOrigin

WORDS = pa.map_(pa.string(), pa.string())
NUMBERS = pa.map_(pa.string(), pa.float32())
REPLIES = pa.schema(
    [
        pa.field("iteration", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("worker", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("weight_version", pa.int64(), nullable=False),
        pa.field("newest_version", pa.int64(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("defect", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("channels", pa.list_(pa.int8()), nullable=False),
        pa.field("logps", pa.list_(pa.float32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("total", pa.float32()),
        pa.field("advantages", NUMBERS, nullable=False),
        pa.field("use", pa.string()),
        pa.field("scores", NUMBERS, nullable=False),
        pa.field("missing", WORDS, nullable=False),
        pa.field("failed_raters", pa.list_(pa.string()), nullable=False),
        pa.field("details", WORDS, nullable=False),
        pa.field("rater_versions", WORDS, nullable=False),
        pa.field("sampling", WORDS, nullable=False),
        pa.field("seconds_audio", pa.float32()),
    ]
)
"""Columns of a reply (method §7, rule 9).

`scores` holds each reward function that gave a number, and the combined scores. `missing` holds the others with the
reason; `failed_raters` lists those that failed themselves. `advantages` has an entry for each route that the reply
trains. `use` is its role in the step: advantage, chosen, rejected, compared or null. `weight_version` sampled its first
token, `newest_version` its last. `worker` is "recorded" for replies from a file of pairs and "demonstration" for scored
demonstrations; columns of steps that were not run are empty."""


@dataclass(frozen=True, kw_only=True)
class ReplyRecord:
    """Row of replies/*.parquet."""

    judged: ScoredReply
    routes: Sequence[str]
    """Labels of the routes, in the order of the advantages."""
    use: str | None
    """Role of the reply in the step, or None."""


@dataclass(frozen=True, kw_only=True)
class ReplyProvenance:
    """Provenance of scores and samples, besides the weights (method §7, rule 9)."""

    raters: Mapping[str, str]
    """Versions of the reward functions and of the codec, by name."""
    sampling: Mapping[str, str]
    """Sampling parameters."""


def replies_table(iteration: int, rows: list[ReplyRecord], made: ReplyProvenance) -> pa.Table:
    """Convert rows to a table with the schema `REPLIES`."""
    judged, hide = [row.judged for row in rows], hide_secrets()
    replies = [j.reply for j in judged]
    # Sampling and scoring columns stay empty for replies that were not sampled or scored here.
    sampled = [reply.worker not in (ReplyOrigin.RECORDED, ReplyOrigin.DEMONSTRATION) for reply in replies]
    rated = [reply.worker != ReplyOrigin.RECORDED for reply in replies]
    columns: dict[str, object] = {
        "iteration": [iteration] * len(rows),
        "prompt_id": [reply.prompt_id for reply in replies],
        "index": [reply.index for reply in replies],
        "worker": [reply.worker for reply in replies],
        "seed": [reply.seed if own else None for reply, own in zip(replies, sampled, strict=True)],
        "weight_version": [reply.weight_version for reply in replies],
        "newest_version": [reply.newest_version or reply.weight_version for reply in replies],
        "finish": [str(reply.finish) for reply in replies],
        "defect": [reply.defect for reply in replies],
        "token_ids": _lists([reply.token_ids for reply in replies], pa.int32()),
        "channels": _lists([reply.channels for reply in replies], pa.int8()),
        "logps": _lists([reply.logps for reply in replies], pa.float32()),
        "text": [j.card.details.get("text", "") for j in judged],
        "total": [j.number("total") for j in judged],
        "advantages": [
            [(label, a) for label, a in zip(row.routes, row.judged.advantages, strict=True) if a is not None]
            for row in rows
        ],
        "use": [row.use for row in rows],
        "scores": [
            [(n, s) for n, s in j.scores.items() if n != "total" and not isinstance(s, MissingScore)] for j in judged
        ],
        "missing": [
            [(n, hide(s.reason)) for n, s in j.card.scores.items() if isinstance(s, MissingScore)] for j in judged
        ],
        "failed_raters": [
            [n for n, s in j.card.scores.items() if isinstance(s, MissingScore) and s.fault == "rater"] for j in judged
        ],
        # Errors of judges may quote addresses and headers.
        "details": [[(name, text and hide(text)) for name, text in j.card.details.items()] for j in judged],
        "rater_versions": [list(made.raters.items()) if own else [] for own in rated],
        "seconds_audio": [j.card.seconds if own else None for j, own in zip(judged, rated, strict=True)],
        "sampling": [list(made.sampling.items()) if own else [] for own in sampled],
    }
    return pa.table(columns, schema=REPLIES)


def judged_replies(table: pa.Table) -> list[ScoredReply]:
    """Convert a table of `REPLIES` back to scored replies, without advantages."""
    return [_judged(row) for row in table.to_pylist()]


def _judged(row: Mapping) -> ScoredReply:
    failed, scores = set(row["failed_raters"]), dict(row["scores"])
    missing = {
        name: MissingScore(reason, fault="rater" if name in failed else "reply") for name, reason in row["missing"]
    }
    total = row["total"] if row["total"] is not None else next(iter(missing.values()), UNRATED)
    return ScoredReply(
        reply=Reply(
            prompt_id=row["prompt_id"],
            index=row["index"],
            token_ids=np.asarray(row["token_ids"], dtype=np.int32),
            channels=np.asarray(row["channels"], dtype=np.int8),
            logps=np.asarray([np.nan if x is None else x for x in row["logps"]], dtype=np.float32),
            weight_version=row["weight_version"],
            newest_version=row["newest_version"],
            finish=Finish(row["finish"]),
            defect=row["defect"],
            worker=row["worker"],
            seed=row["seed"] or 0,
        ),
        card=Scorecard(scores=scores | missing, details=dict(row["details"]), seconds=row["seconds_audio"] or 0.0),
        scores=scores | missing | {"total": total},
        advantages=(),
    )


def _lists(arrays: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    """Convert arrays to one list column without a Python object per token."""
    values = np.concatenate(arrays) if arrays else np.empty(0, kind.to_pandas_dtype())
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values, kind, mask=~np.isfinite(values)))
