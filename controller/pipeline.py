"""Replies on their way: ordered, drawn, rated. Each is rated as soon as it is there, whatever its group still lacks.

    order ──▶ rollout pool ──reply──▶ reward pool ──card──▶ batch ──▶ whole

Both pools go on with what they have, whoever is waited for (`cluster.actor_pool.poll_once`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import ray

from cluster.actor_pool import ActorPool, poll_once
from reward.types import Scorecard
from rollout.vllm_engine import SamplingConfig
from speech.types import Prompt, Reply, ReplyGroup


class RolloutSource(Protocol):
    """What a flow needs of the rollout pool."""

    def submit(self, prompt: Prompt, group_size: int, sampling: SamplingConfig, seed: int) -> int: ...
    def replies(self) -> list[tuple[int, Reply]]: ...
    def abort_all(self) -> None: ...


class RewardSource(Protocol):
    """What a flow needs of the reward pool."""

    def submit(self, prompt: Prompt, reply: Reply) -> int: ...
    def collect(self) -> list[tuple[int, Scorecard]]: ...
    def abort_all(self) -> None: ...


@dataclass(eq=False)
class RolloutBatch:
    """Groups that are ordered together."""

    prompts: Sequence[Prompt]
    group_size: int
    replies: list[dict[int, Reply]] = field(default_factory=list)
    """By group, and by index in it."""
    cards: list[dict[int, Scorecard]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replies = [{} for _ in self.prompts]
        self.cards = [{} for _ in self.prompts]

    @property
    def drawn(self) -> bool:
        """Whether all replies are there."""
        return all(len(group) == self.group_size for group in self.replies)

    @property
    def whole(self) -> bool:
        """Whether all are rated."""
        return all(len(group) == self.group_size for group in self.cards)

    def groups(self) -> list[ReplyGroup]:
        """In the order of the prompts, replies in that of their indices."""
        return [
            ReplyGroup(prompt=prompt, replies=[replies[index] for index in sorted(replies)])
            for prompt, replies in zip(self.prompts, self.replies, strict=True)
        ]

    def scorecards(self) -> list[list[Scorecard]]:
        """One a reply, in the same order."""
        return [[cards[index] for index in sorted(cards)] for cards in self.cards]


class Pipeline:
    """All batches that are under way."""

    def __init__(self, rollout: RolloutSource, reward: RewardSource, company: Sequence[ActorPool]) -> None:
        """company: the crews of both pools."""
        self._rollout, self._reward, self._company = rollout, reward, company
        self._drawing: dict[int, tuple[RolloutBatch, int]] = {}
        self._rating: dict[int, tuple[RolloutBatch, int, int]] = {}

    def order(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], group_size: int, sampling: SamplingConfig
    ) -> RolloutBatch:
        """A group for each prompt. seeds: one a prompt, fix the draws."""
        batch = RolloutBatch(prompts, group_size)
        for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            self._drawing[self._rollout.submit(prompt, group_size, sampling, seed)] = batch, place
        return batch

    def pump(self, until: Callable[[], bool], others: Sequence[ray.ObjectRef] = ()) -> None:
        """Takes turns until something holds. others: answers that bear on that."""
        self.move()
        while not until():
            poll_once(self._company, others)
            self.move()

    def move(self) -> None:
        """Passes on what has come."""
        for number, reply in self._rollout.replies():
            batch, place = self._drawing[number]
            batch.replies[place][reply.index] = reply
            if len(batch.replies[place]) == batch.group_size:
                del self._drawing[number]
            self._rating[self._reward.submit(batch.prompts[place], reply)] = batch, place, reply.index
        for number, card in self._reward.collect():
            batch, place, index = self._rating.pop(number)
            batch.cards[place][index] = card

    def abandon(self) -> None:
        """Gives up all batches."""
        self._rollout.abort_all()
        self._reward.abort_all()
        self._drawing.clear()
        self._rating.clear()
