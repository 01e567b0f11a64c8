"""The learner's rows, and how they are dealt out to ranks and micro-batches. `learner.collate` makes them tensors."""

import heapq
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """A prompt with a reply to learn from: a sampled reply (preference) or a demonstration (anchor)."""

    prompt_ids: np.ndarray
    """int32 [P]."""
    reply_ids: np.ndarray
    """int32 [T]."""
    channels: np.ndarray
    """int8 [T]."""
    allowed: np.ndarray | None = None
    """int8 [T], sets of `speech.grammar.TokenKind`: the tokens that the sampler could draw at each position. None:
    all."""
    behaviour: np.ndarray | None = None
    """float32 [T]: the sampler's log-probabilities; None for demonstrations and for replies from a file."""
    features: str | None = None
    """File of the encoder features that the prompt has slots for (`speech.audio`)."""
    anchor_weight: float = 0.0
    """Of a demonstration; those of a whole batch add up to 1."""
    advantages: tuple[float, ...] = ()
    """One for each route."""
    weights: tuple[float, ...] = ()
    """What every selected token counts, one for each route: the route's normaliser (`controller.batch`)."""
    kl_weights: tuple[float, float] = (0.0, 0.0)
    """The same for the divergence from the start model on text and on speech tokens."""

    @property
    def rows(self) -> "tuple[TrainingSample, ...]":
        return (self,)

    @property
    def prompt(self) -> Hashable:
        """Equal for rows that a model hears the same in."""
        return self.prompt_ids.tobytes(), self.features

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass(frozen=True, kw_only=True)
class TrainingPair:
    """Two replies to one prompt, the better first. They stay together through every split."""

    chosen: TrainingSample
    rejected: TrainingSample
    weight: float
    """Those of a whole batch add up to 1, unless groups count by λ of their own."""

    @property
    def rows(self) -> tuple[TrainingSample, TrainingSample]:
        return self.chosen, self.rejected

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


Item = TrainingSample | TrainingPair
"""What a batch is made of."""
LOGITS = 2**25
"""Logits that are held at once: 128 MiB in float32, and a few times that while they are worked on."""
LAID_OUT = 4
"""Cells of attention's own layout for each token of a micro-batch, at most: one long row among short ones, or many
replies to one long prompt, would take more memory there than everything else."""


def tokens_of(items: Sequence[Item]) -> int:
    """How many the learner computes when it takes them together: a prompt that several share counts once."""
    prompts: dict[Hashable, int] = {}
    replies = 0
    for item in items:
        for row in item.rows:
            prompts[row.prompt] = len(row.prompt_ids)
            replies += len(row.reply_ids)
    return sum(prompts.values()) + replies


def split(items: Sequence[Item], parts: int) -> list[list[Item]]:
    """Deals items out into `parts` lists of about as many tokens each; none is empty where there are as many items.

    Those of one prompt stay together, as far as lists come out even: the longest bundle goes first, to the list that
    has fewest tokens.
    """
    lists: list[list[Item]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    sized = [(tokens_of(bundle), bundle) for bundle in _bundles(items, 4 * parts)]
    for size, bundle in sorted(sized, key=lambda one: one[0], reverse=True):
        tokens, part = loads[0]
        lists[part] += bundle
        heapq.heapreplace(loads, (tokens + size, part))
    return lists


def _bundles(items: Sequence[Item], least: int) -> list[list[Item]]:
    """Items by prompt; the largest are halved until there are so many, or nothing is left to halve."""
    found: dict[Hashable, list[Item]] = {}
    for item in items:
        found.setdefault(item.rows[0].prompt, []).append(item)
    order = itertools.count()  # which of two that are as large comes first; items cannot be compared
    whole = [bundle for bundle in found.values() if len(bundle) == 1]
    heap = [(-tokens_of(bundle), next(order), bundle) for bundle in found.values() if len(bundle) > 1]
    heapq.heapify(heap)
    while heap and len(heap) + len(whole) < least:
        _, _, largest = heapq.heappop(heap)
        for half in (largest[::2], largest[1::2]):
            if len(half) > 1:
                heapq.heappush(heap, (-tokens_of(half), next(order), half))
            else:
                whole.append(half)
    return whole + [bundle for _, _, bundle in heap]


def micro_batches(shares: Sequence[Sequence[Item]], tokens: int, *, packing: bool) -> int:
    """In how many micro-batches ranks take their shares, all of them as many: about the fewest in which none has more
    than so many tokens, padding included. An item by itself may have more; and where a rank has few items, which are
    never less than its micro-batches, others may take more at once.

    With packing, attention may lay rows out in `LAID_OUT` times as many cells.
    """

    def fits(part: Sequence[Item]) -> bool:
        rows = [row for item in part for row in item.rows]
        cells = len(rows) * max(map(len, rows))
        if packing:
            return len(part) == 1 or (cells <= LAID_OUT * tokens and tokens_of(part) <= tokens)
        return len(part) == 1 or cells <= tokens

    def least(share: Sequence[Item]) -> int:
        return -(-(tokens_of(share) - sum(max(0, len(item) - tokens) for item in share)) // tokens)

    fewest = min(map(len, shares))
    count = max(1, *map(least, shares))
    while count < fewest and not all(fits(part) for share in shares for part in split(share, count)):
        count += 1 + count // 8
    return min(count, fewest)
