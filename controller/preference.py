"""From judged replies to the preference part of a batch: rows with advantages, or pairs. Pure.

The learner adds up weight · term over tokens, so every mean that the loss is made of is a weight given here, where the
whole batch is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from controller import pairing
from controller.routing import Route
from controller.statistics import Judged
from learner.rows import Item, Pair, Row
from speech.channels import select
from speech.interleave import Pattern, allowed_sets_of, check
from speech.records import Demonstration, Finish, Group, Prompt, Reply
from speech.vocabulary import Vocabulary

RECORDED, DEMONSTRATION = "recorded", "demonstration"
"""What stands for the worker of a reply that came from a file of pairs, or that is a demonstration."""
AVERAGES = ("reply", "token", "constant")
Structure = tuple[Pattern, np.ndarray]
"""The pattern that sampling was held to, and the kinds of all ids."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The preference part of a batch."""

    items: list[Item]
    uses: list[list[str | None]]
    """By group and reply what it served as, for the records: "advantage", "chosen", "rejected"; None where it gave no
    preference gradient."""


class Preference(Protocol):
    """Makes a batch of judged replies."""

    def examples(self, prompts: Sequence[Prompt]) -> list[Group]:
        """Replies to these prompts that are to be rated although the policy did not sample them."""
        ...

    def batch(
        self,
        groups: Sequence[Group],
        judged: Sequence[Sequence[Judged]],
        examples: Mapping[str, Judged],
        shares: Sequence[float],
    ) -> Batch:
        """examples: the judged examples by prompt id. shares: what each group counts, relative to the others."""
        ...


def token_weights(counts: Sequence[Sequence[int]], average: str, constant: int) -> list[list[float]]:
    """What each token of a reply counts, by group and reply; 0 for replies without a token.

    counts: the selected tokens of each reply. average (method §3):
      "reply"     mean over a reply's tokens, then over a group's replies, then over groups (GRPO)
      "token"     mean over all tokens of the batch (DAPO, arXiv 2503.14476)
      "constant"  sum over a reply's tokens / constant, mean over all replies (Dr. GRPO, arXiv 2503.20783)
    A group without any selected token is no group: it gives no gradient and does not count (method §7, rule 4).
    """
    if average not in AVERAGES:
        raise ValueError(f"unknown average {average!r}; allowed: {', '.join(AVERAGES)}")
    groups = sum(any(group) for group in counts)
    tokens, replies = sum(map(sum, counts)), sum(len(group) for group in counts if any(group))

    def weight(count: int, group: Sequence[int]) -> float:
        if not count:
            return 0.0
        if average == "reply":
            return 1.0 / (groups * len(group) * count)
        return 1.0 / tokens if average == "token" else 1.0 / (constant * replies)

    return [[weight(count, group) for count in group] for group in counts]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Every reply with an advantage is a row; every route and every KL term has its own normaliser."""

    routes: Sequence[Route]
    boundary: str
    average: str
    constant: int
    structure: Structure | None

    def examples(self, prompts: Sequence[Prompt]) -> list[Group]:
        return []

    def batch(
        self,
        groups: Sequence[Group],
        judged: Sequence[Sequence[Judged]],
        examples: Mapping[str, Judged],
        shares: Sequence[float],
    ) -> Batch:
        by_route = [self._weights(judged, route.channel, index) for index, route in enumerate(self.routes)]
        trained = [
            [any(weights[g][r] > 0 for weights in by_route) for r in range(len(replies))]
            for g, replies in enumerate(judged)
        ]
        divergence = [self._weights(judged, channel, None, trained) for channel in ("text", "speech")]
        items: list[Item] = []
        used = [j.reply for g, replies in enumerate(judged) for r, j in enumerate(replies) if trained[g][r]]
        allowed = iter(_allowed(used, self.structure))
        for g, (group, replies, share) in enumerate(zip(groups, judged, shares, strict=True)):
            for r, j in enumerate(replies):
                if trained[g][r]:
                    text, speech = (share * weights[g][r] for weights in divergence)
                    items.append(
                        Row(
                            **_tokens(group.prompt, j.reply, next(allowed)),
                            behaviour=j.reply.logps,
                            advantages=tuple(a or 0.0 for a in j.advantages),
                            weights=tuple(share * weights[g][r] for weights in by_route),
                            kl_weights=(text, speech),
                        )
                    )
        return Batch(items=items, uses=[["advantage" if used else None for used in replies] for replies in trained])

    def _weights(
        self,
        judged: Sequence[Sequence[Judged]],
        channel: str,
        route: int | None,
        among: Sequence[Sequence[bool]] | None = None,
    ) -> list[list[float]]:
        """Token weights over the replies with an advantage on the route (None: over `among`); 0 for the others."""
        takes_part = [
            [among[g][r] if among else route is not None and j.advantages[route] is not None for r, j in enumerate(rs)]
            for g, rs in enumerate(judged)
        ]
        counts = [
            [
                int(select(j.reply.channels, channel, boundary=self.boundary).sum())
                for j, taken in zip(replies, parts, strict=True)
                if taken
            ]
            for replies, parts in zip(judged, takes_part, strict=True)
        ]
        found = [iter(weights) for weights in token_weights(counts, self.average, self.constant)]
        return [
            [next(weights) if taken else 0.0 for taken in parts]
            for weights, parts in zip(found, takes_part, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class PairedReplies:
    """The best and the worst reply to a prompt are a pair, when they are far enough apart (method §5)."""

    score: str
    ties: Sequence[str]
    margin: float
    structure: Structure | None
    demonstrations: Mapping[str, Demonstration] | None = None
    """By prompt: what the worst sample is compared with; None compares it with the best sample."""
    vocabulary: Vocabulary
    recorded: bool = False
    """Whether groups are pairs from a file, the better reply first."""

    def examples(self, prompts: Sequence[Prompt]) -> list[Group]:
        """The demonstrations of these prompts, as replies that a rater can hear."""
        if self.demonstrations is None:
            return []
        known = [(prompt, self.demonstrations[prompt.id]) for prompt in prompts if prompt.id in self.demonstrations]
        return [Group(prompt=prompt, replies=[self._as_reply(prompt, d)]) for prompt, d in known]

    def batch(
        self,
        groups: Sequence[Group],
        judged: Sequence[Sequence[Judged]],
        examples: Mapping[str, Judged],
        shares: Sequence[float],
    ) -> Batch:
        uses: list[list[str | None]] = [[None] * len(replies) for replies in judged]
        found: list[tuple[Row, Row, float]] = []
        for group, replies, use, share in zip(groups, judged, uses, shares, strict=True):
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
            found.append((rows[0], rows[1], share))
        return Batch(items=[Pair(chosen=c, rejected=r, weight=share / len(found)) for c, r, share in found], uses=uses)

    def _choose(self, candidates: Sequence[Judged]) -> tuple[int, int] | None:
        """Indices of the better and the worse reply."""
        if self.recorded:
            return 0, 1
        scores = [j.number(self.score) for j in candidates]
        ties = [[j.number(name) for name in self.ties] for j in candidates]
        best = None if self.demonstrations is None else len(candidates) - 1
        found = pairing.choose(scores, ties, self.margin, best=best)
        if found and np.array_equal(*(candidates[index].reply.token_ids for index in found)):
            return None
        return found

    def _row(self, prompt: Prompt, reply: Reply) -> Row:
        sampled = bool(np.isfinite(reply.logps).all())
        (allowed,) = _allowed([reply], self.structure)
        return Row(**_tokens(prompt, reply, allowed), behaviour=reply.logps if sampled else None)

    def _as_reply(self, prompt: Prompt, demonstration: Demonstration) -> Reply:
        return unsampled(prompt.id, demonstration.reply_ids, self.vocabulary, self.structure, DEMONSTRATION)


def unsampled(
    prompt_id: str, ids: np.ndarray, vocabulary: Vocabulary, structure: Structure | None, origin: str, index: int = 0
) -> Reply:
    """Reply ids [T] that no worker of this run sampled, as a Reply. Its log-probabilities are unknown: NaN."""
    return Reply(
        prompt_id=prompt_id,
        index=index,
        token_ids=ids,
        channels=vocabulary.channels(ids),
        logps=np.full(len(ids), np.nan, dtype=np.float32),
        weight_version=-1,
        finish=Finish.STOP if ids[-1] == vocabulary.end_reply else Finish.LENGTH,
        defect=check(ids, *structure) if structure else None,
        worker=origin,
    )


def _allowed(replies: Sequence[Reply], structure: Structure | None) -> list[np.ndarray | None]:
    """Of each reply, int8 [T], what the sampler could draw; None: everything."""
    if structure is None:
        return [None] * len(replies)
    return [*allowed_sets_of([reply.token_ids for reply in replies], *structure)]


def _tokens(prompt: Prompt, reply: Reply, allowed: np.ndarray | None) -> dict:
    return {
        "prompt_ids": prompt.token_ids,
        "features": prompt.features,
        "reply_ids": reply.token_ids,
        "channels": reply.channels,
        "allowed": allowed,
    }
