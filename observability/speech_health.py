"""Speech measures of an iteration, averaged over replies, for the dashboards. Pure."""

from collections.abc import Iterable, Sequence

import numpy as np

from reward.scoring import ScoredReply
from speech.types import Reply
from speech.vocabulary import Channel

MEASURES = ("seconds", "pitch_semitones", "words_per_second", "silence", "word_error", "codebook_entropy")
"""Audio duration, the measures of `speech.acoustics.measures`, and `codebook_entropy`."""


def speech_health(judged: Sequence[ScoredReply]) -> dict[str, float | None]:
    """Return the mean of each measure over the replies that have it, or None.

    Truncated and malformed replies have no measures. The entropy is over the codes of all replies.
    """
    rows = [{**j.card.measures, "seconds": j.card.seconds} for j in judged if j.card.measures]
    found: dict[str, float | None] = {}
    for name in MEASURES:
        values = [row[name] for row in rows if name in row]
        found[name] = float(np.mean(values)) if values else None
    found["codebook_entropy"] = codebook_entropy(j.reply for j in judged)
    return found


def codebook_entropy(replies: Iterable[Reply]) -> float | None:
    """Return the entropy of the speech code frequencies in nats, or None without speech tokens.

    Its exponential is the effective number of codes. It falls when the voice collapses to a few sounds.
    """
    codes = [reply.token_ids[reply.channels == Channel.SPEECH] for reply in replies]
    spoken = np.concatenate(codes) if codes else np.empty(0, dtype=np.int32)
    if not len(spoken):
        return None
    counts = np.unique(spoken, return_counts=True)[1]
    shares = counts / counts.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum()))
