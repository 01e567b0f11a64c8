"""Raters that need no ears, with scores that differ within a group: what is tested is what they travel through."""

from reward.types import MissingScore, Score, SpokenReply


class Words:
    """1..5 by the share of even ids among the text tokens."""

    name, version = "words", "words-1"

    def rate(self, spoken: SpokenReply) -> Score:
        ids = spoken.reply.token_ids[spoken.reply.channels == 0]
        return 1.0 + 4.0 * float((ids % 2 == 0).mean()) if len(ids) else MissingScore("no text in the reply")


class Sound:
    """1..5 by how loud the first half of the reply is against all of it."""

    name, version = "sound", "sound-1"

    def rate(self, spoken: SpokenReply) -> Score:
        if spoken.waveform is None:
            return MissingScore("no speech in the reply")
        return 1.0 + min(4.0, spoken.waveform.seconds)
