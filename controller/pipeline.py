"""Rollout batches in progress: generated, then scored. Each reply is scored as soon as it is finished.

    submit ──▶ rollout pool ──reply──▶ reward pool ──scorecard──▶ batch ──▶ scored

Both pools advance with every poll (`cluster.actor_pool.poll_once`).
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
    """The rollout pool, as far as a pipeline calls it."""

    def submit(self, prompt: Prompt, group_size: int, sampling: SamplingConfig, seed: int) -> int: ...
    def replies(self) -> list[tuple[int, Reply]]: ...
    def abort_all(self) -> None: ...


class RewardSource(Protocol):
    """The reward pool, as far as a pipeline calls it."""

    def submit(self, prompt: Prompt, reply: Reply) -> int: ...
    def collect(self) -> list[tuple[int, Scorecard]]: ...
    def abort_all(self) -> None: ...


@dataclass(eq=False)
class RolloutBatch:
    """Groups that are submitted together."""

    prompts: Sequence[Prompt]
    group_size: int
    replies: list[dict[int, Reply]] = field(default_factory=list)
    """By group, then by index in the group."""
    cards: list[dict[int, Scorecard]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replies = [{} for _ in self.prompts]
        self.cards = [{} for _ in self.prompts]

    @property
    def generated(self) -> bool:
        """True once all replies are generated."""
        return all(len(group) == self.group_size for group in self.replies)

    @property
    def scored(self) -> bool:
        """True once all replies are scored."""
        return all(len(group) == self.group_size for group in self.cards)

    def groups(self) -> list[ReplyGroup]:
        """Return groups in the order of prompts, replies in the order of indices."""
        return [
            ReplyGroup(prompt=prompt, replies=[replies[index] for index in sorted(replies)])
            for prompt, replies in zip(self.prompts, self.replies, strict=True)
        ]

    def scorecards(self) -> list[list[Scorecard]]:
        """Return one scorecard per reply, in the order of `groups`."""
        return [[cards[index] for index in sorted(cards)] for cards in self.cards]


class Pipeline:
    """All batches in progress."""

    def __init__(self, rollout: RolloutSource, reward: RewardSource, pools: Sequence[ActorPool]) -> None:
        """pools: the actor pools behind both, to poll."""
        self._rollout, self._reward, self._pools = rollout, reward, pools
        self._generating: dict[int, tuple[RolloutBatch, int]] = {}
        self._scoring: dict[int, tuple[RolloutBatch, int, int]] = {}

    def submit(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], group_size: int, sampling: SamplingConfig
    ) -> RolloutBatch:
        """Submit a group for each prompt. seeds: one per prompt, fix the sampling."""
        batch = RolloutBatch(prompts, group_size)
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            self._generating[self._rollout.submit(prompt, group_size, sampling, seed)] = batch, index
        return batch

    def run_until(self, done: Callable[[], bool], extra: Sequence[ray.ObjectRef] = ()) -> None:
        """Poll the pools until `done` returns True. extra: refs that may change its result."""
        self.route()
        while not done():
            poll_once(self._pools, extra)
            self.route()

    def route(self) -> None:
        """Pass finished replies to the reward pool, and scorecards to their batches."""
        for number, reply in self._rollout.replies():
            batch, group = self._generating[number]
            batch.replies[group][reply.index] = reply
            if len(batch.replies[group]) == batch.group_size:
                del self._generating[number]
            self._scoring[self._reward.submit(batch.prompts[group], reply)] = batch, group, reply.index
        for number, card in self._reward.collect():
            batch, group, index = self._scoring.pop(number)
            batch.cards[group][index] = card

    def abort_all(self) -> None:
        """Abort all batches."""
        self._rollout.abort_all()
        self._reward.abort_all()
        self._generating.clear()
        self._scoring.clear()
