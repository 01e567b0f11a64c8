"""Training rows, and their split into ranks and micro-batches. `learner.collate` makes them tensors."""

import heapq
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """A prompt and a reply to train on: a sampled reply (preference) or a demonstration (anchor)."""

    prompt_ids: np.ndarray
    """int32 [P]."""
    reply_ids: np.ndarray
    """int32 [T]."""
    channels: np.ndarray
    """int8 [T]."""
    allowed: np.ndarray | None = None
    """int8 [T], sets of `speech.grammar.TokenKind`: what the sampler could draw at each position. None: all tokens."""
    rollout_logprobs: np.ndarray | None = None
    """float32 [T], as the sampler reported them. None for demonstrations and for replies from a file."""
    features: str | None = None
    """File of encoder features, for the prompt's slots (`speech.audio`)."""
    anchor_weight: float = 0.0
    """Weight of a demonstration. The weights of a batch sum to 1."""
    advantages: tuple[float, ...] = ()
    """One per route."""
    weights: tuple[float, ...] = ()
    """Weight of each selected token, one per route: the route's normalizer (`controller.batch`)."""
    kl_weights: tuple[float, float] = (0.0, 0.0)
    """Weight of each text and each speech token in the KL to the reference model."""

    @property
    def rows(self) -> "tuple[TrainingSample, ...]":
        return (self,)

    @property
    def prompt_key(self) -> Hashable:
        """Key that is equal for equal prompts, audio features included."""
        return self.prompt_ids.tobytes(), self.features

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass(frozen=True, kw_only=True)
class TrainingPair:
    """Two replies to one prompt, the better first. No split separates them."""

    chosen: TrainingSample
    rejected: TrainingSample
    weight: float
    """The weights of a batch sum to 1, unless each group has its own λ."""

    @property
    def rows(self) -> tuple[TrainingSample, TrainingSample]:
        return self.chosen, self.rejected

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


Item = TrainingSample | TrainingPair
"""Element of a batch."""

MAX_LOGITS = 2**25
"""Maximum number of logits in memory: 128 MiB in float32, and a few times that during computation."""

MAX_LAYOUT_RATIO = 4
"""Maximum cells of attention's padded layout per token of a micro-batch. One long row among short ones, or many replies
to one long prompt, would otherwise take more memory there than everything else."""


def tokens_of(items: Sequence[Item]) -> int:
    """Count the tokens that the learner computes for these items together. A shared prompt counts once."""
    prompts: dict[Hashable, int] = {}
    replies = 0
    for item in items:
        for row in item.rows:
            prompts[row.prompt_key] = len(row.prompt_ids)
            replies += len(row.reply_ids)
    return sum(prompts.values()) + replies


def split(items: Sequence[Item], parts: int) -> list[list[Item]]:
    """Split items into `parts` lists of about equal numbers of tokens. No list is empty if there are enough items.

    Items of one prompt stay together as far as the lists stay even: the longest bundle goes first, to the list with
    the fewest tokens.
    """
    lists: list[list[Item]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    sized = [(tokens_of(bundle), bundle) for bundle in _bundles(items, 4 * parts)]
    for size, bundle in sorted(sized, key=lambda one: one[0], reverse=True):
        tokens, part = loads[0]
        lists[part] += bundle
        heapq.heapreplace(loads, (tokens + size, part))
    return lists


def _bundles(items: Sequence[Item], min_bundles: int) -> list[list[Item]]:
    """Group items by prompt. Halve the largest bundles until there are `min_bundles`, or none can be halved."""
    found: dict[Hashable, list[Item]] = {}
    for item in items:
        found.setdefault(item.rows[0].prompt_key, []).append(item)
    order = itertools.count()  # breaks ties: items cannot be compared
    whole = [bundle for bundle in found.values() if len(bundle) == 1]
    heap = [(-tokens_of(bundle), next(order), bundle) for bundle in found.values() if len(bundle) > 1]
    heapq.heapify(heap)
    while heap and len(heap) + len(whole) < min_bundles:
        _, _, largest = heapq.heappop(heap)
        for half in (largest[::2], largest[1::2]):
            if len(half) > 1:
                heapq.heappush(heap, (-tokens_of(half), next(order), half))
            else:
                whole.append(half)
    return whole + [bundle for _, _, bundle in heap]


def micro_batches(shares: Sequence[Sequence[Item]], max_tokens: int, *, packing: bool) -> int:
    """Return the number of micro-batches, the same for all ranks: about the fewest that respect `max_tokens`.

    A single item may exceed the limit. No rank has fewer items than micro-batches, so if one rank has few items, other
    ranks may exceed it too.

    Args:
        shares: Items of each rank.
        max_tokens: Tokens of a micro-batch, padding included. With packing, attention's padded layout may have
            `MAX_LAYOUT_RATIO` times as many cells.
    """

    def fits(part: Sequence[Item]) -> bool:
        rows = [row for item in part for row in item.rows]
        cells = len(rows) * max(map(len, rows))
        if packing:
            return len(part) == 1 or (cells <= MAX_LAYOUT_RATIO * max_tokens and tokens_of(part) <= max_tokens)
        return len(part) == 1 or cells <= max_tokens

    def lower_bound(share: Sequence[Item]) -> int:
        return -(-(tokens_of(share) - sum(max(0, len(item) - max_tokens) for item in share)) // max_tokens)

    fewest = min(map(len, shares))
    count = max(1, *map(lower_bound, shares))
    while count < fewest and not all(fits(part) for share in shares for part in split(share, count)):
        count += 1 + count // 8
    return min(count, fewest)
