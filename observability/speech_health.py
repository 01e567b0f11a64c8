"""How the replies of an iteration sound, in means: what the dashboards show of the voice. Pure."""

from collections.abc import Iterable, Sequence

import numpy as np

from reward.scoring import ScoredReply
from speech.types import Reply
from speech.vocabulary import Channel

MEASURES = ("seconds", "pitch_semitones", "words_per_second", "silence", "word_error", "codebook_entropy")
"""Audio length; then those of `speech.acoustics.measures`; then `codebook_entropy`."""


def speech_health(judged: Sequence[ScoredReply]) -> dict[str, float | None]:
    """Means by measure over the replies that have it, None where none has: those that are truncated or malformed have
    none. The entropy is over all replies together."""
    rows = [{**j.card.measures, "seconds": j.card.seconds} for j in judged if j.card.measures]
    found: dict[str, float | None] = {}
    for name in MEASURES:
        values = [row[name] for row in rows if name in row]
        found[name] = float(np.mean(values)) if values else None
    found["codebook_entropy"] = codebook_entropy(j.reply for j in judged)
    return found


def codebook_entropy(replies: Iterable[Reply]) -> float | None:
    """Entropy of the speech codes' frequencies, nats; its exponential is how many codes are in use. It falls when a
    voice collapses onto a few sounds. None without speech tokens."""
    codes = [reply.token_ids[reply.channels == Channel.SPEECH] for reply in replies]
    spoken = np.concatenate(codes) if codes else np.empty(0, dtype=np.int32)
    if not len(spoken):
        return None
    counts = np.unique(spoken, return_counts=True)[1]
    shares = counts / counts.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum()))
