"""The loop. Read this file to learn what Duet does; everything else is how."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from controller import assembly
from controller.batch import anchor_rows, describe, preference_rows
from controller.config import Config
from controller.iteration import Iteration
from controller.ledger import Ledger, draw_seeds
from controller.statistics import Judged, group_scores, judge
from reward.rater import Scorecard
from rollout.worker import Probe, SyncReport
from speech.interleave import kind_table
from speech.records import Group, Prompt

PROMPTS, DEMONSTRATIONS, EVALUATION = range(3)
"""Streams of random numbers within a run."""
PROBES = 4
"""Demonstrations whose log-probabilities are compared between learner and workers after every sync."""


class Loop:
    """One run: the pools, the mix ratio, and the steps of an iteration."""

    def __init__(self, config: Config, inputs: assembly.Inputs, run: str) -> None:
        self.config, self.inputs = config, inputs
        self.learner = assembly.learner_group(config, inputs.family, run)
        self.rollout = assembly.rollout_pool(config, inputs.family)
        self.reward = assembly.reward_pool(config, inputs.family)
        self.mix = assembly.mix_ratio(config)
        self.prompts = Ledger(len(inputs.prompts), config.run.seed, PROMPTS)
        self.demonstrations = Ledger(len(inputs.demonstrations), config.run.seed, DEMONSTRATIONS)
        self.rater_versions: dict[str, str] = {}
        self.phase = ""
        self.seconds: dict[str, float] = {}
        self._probe = [np.concatenate([d.prompt_ids, d.reply_ids]) for d in inputs.demonstrations[:PROBES]]
        pattern, kinds = inputs.family.interleave, kind_table(inputs.vocabulary)
        self._structure = (pattern, kinds) if assembly.constrained(config, inputs.family) else None

    def start(self) -> None:
        """Everybody up, and every worker with the learner's weights."""
        self.rater_versions = self.reward.start()
        self.learner.start()
        self.rollout.start(self.inputs.prompts[:1], self.config.rollout.group_size, assembly.sampling(self.config))
        self.sync(None)

    def iterate(self, number: int) -> tuple[Iteration, list[list[Judged]]]:
        """One iteration: sample, score, measure λ, take a step, pass on the weights."""
        config, inputs = self.config, self.inputs
        self.seconds = {}
        prompts = [inputs.prompts[index] for index in self.prompts.take(config.rollout.prompts)]
        demonstrations = [inputs.demonstrations[index] for index in self.demonstrations.take(config.anchor.rows)]
        version = self.learner.version

        with self._timed("rollout"):
            groups = self.sample(prompts, draw_seeds(config.run.seed, PROMPTS, number, len(prompts)))
        with self._timed("reward"):
            cards = self.reward.score(groups)
        with self._timed("learn"):
            judged = [
                judge(group, card, config.reward.total, assembly.routes(config))
                for group, card in zip(groups, cards, strict=True)
            ]
            mix = self.mix.update([group_scores(replies) for replies in judged])
            rows = preference_rows(groups, judged, self._structure) + anchor_rows(demonstrations, inputs.vocabulary)
            learned = self.learner.step(rows, mix.mix)
        with self._timed("sync"):
            syncs, size = self.sync(mix.mix)

        return describe(number, version, mix, judged, learned, syncs, size, self.seconds), judged

    def sample(self, prompts: list[Prompt], seeds: list[int], group_size: int | None = None) -> list[Group]:
        """A group for each prompt under the newest weights."""
        size = group_size or self.config.rollout.group_size
        return self.rollout.sample(prompts, size, assembly.sampling(self.config), seeds)

    def sync(self, mix: float | None) -> tuple[dict[str, SyncReport], int]:
        """The learner's newest weights and λ to every worker, each of which proves that it holds them."""
        published = self.learner.publish(self._probe)
        probe = Probe(sequences=self._probe, logps=published.probe_logps)
        return self.rollout.update(published.path, published.version, mix, probe), published.size

    def evaluate(self, prompts: list[Prompt], number: int) -> tuple[list[Group], list[Scorecard]]:
        """One reply to each prompt, scored. The draws depend on `number`, the place of the evaluation set, alone."""
        seeds = draw_seeds(self.config.run.seed, EVALUATION, number, len(prompts))
        groups = self.sample(prompts, seeds, group_size=1)
        return groups, [cards[0] for cards in self.reward.score(groups)]

    def state(self) -> dict[str, float | int | None]:
        """What the controller itself must remember to go on from here."""
        return {
            "mix": self.mix.state,
            "weight_version": self.learner.version,
            "prompts": self.prompts.position,
            "demonstrations": self.demonstrations.position,
        }

    def stop(self) -> None:
        self.rollout.stop()
        self.reward.stop()
        self.learner.stop()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self.phase = phase
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start
