"""The loop. Read this file to learn what Duet does; everything else is how."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cluster.watchdog import Waiting
from controller import assembly
from controller.batch import anchor_rows, describe
from controller.checkpoints import Checkpoint
from controller.config import Config
from controller.inputs import Inputs, fingerprints
from controller.iteration import Iteration
from controller.ledger import DEMONSTRATIONS, EVALUATION, PROMPTS, Ledger, draw_seeds
from controller.metrics.state import Standing
from controller.recorded import recorded_group
from controller.replies import ScoredReply
from controller.routing import Route
from controller.statistics import Judged, group_scores, judge
from reward.rater import Scorecard
from rollout.worker import Probe, SyncReport
from speech.errors import InputError
from speech.records import Group, Prompt

JUDGES = "judges.parquet"
"""In a checkpoint: what the judges said so far."""
PROBES = 4
"""Demonstrations whose log-probabilities are compared between learner and workers after every sync."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """An iteration, for the records."""

    iteration: Iteration
    judged: list[list[Judged]]
    uses: list[list[str | None]]
    """What each reply served as."""
    examples: list[Judged]
    """Demonstrations that were rated to be compared with."""
    not_finite: str | None
    """What was not finite, when the step was skipped."""

    def rows(self, routes: list[Route]) -> list[ScoredReply]:
        """Every reply that was rated."""
        used = [
            pair
            for replies, uses in zip(self.judged, self.uses, strict=True)
            for pair in zip(replies, uses, strict=True)
        ]
        used += [(judged, "compared") for judged in self.examples]
        labels = [route.label for route in routes]
        return [ScoredReply(judged=judged, routes=labels, use=use) for judged, use in used]


class Loop:
    """One run: the pools, the mix ratio, and the steps of an iteration."""

    def __init__(self, config: Config, inputs: Inputs, run: str, tell: assembly.Tell) -> None:
        """tell: takes events, a kind and fields."""
        self.config, self.inputs, self._run, self._tell = config, inputs, run, tell
        # First of all, and for good: pools that grow, or replace a member, cannot take what the learner needs.
        self._learners = assembly.learner_place(config)
        self.learner = assembly.learner_group(config, inputs.family, run, self._learners)
        self.rollout = assembly.rollout_pool(config, inputs.family, tell)
        self.reward = assembly.reward_pool(config, inputs.family, tell)
        self.mix = assembly.mix_ratio(config, None)
        self.preference = assembly.preference(config, inputs)
        self.routes = assembly.routes(config)
        self.prompts = Ledger(len(inputs.pairs or inputs.prompts), config.run.seed, PROMPTS)
        self.demonstrations = Ledger(len(inputs.demonstrations), config.run.seed, DEMONSTRATIONS)
        self.rater_versions: dict[str, str] = {}
        self.phase, self.since = "", time.monotonic()
        """What an iteration is doing, empty outside of one, and since when."""
        self.learner_restarts = 0
        self.seconds: dict[str, float] = {}
        self.marks = fingerprints(inputs)
        self._probe = [np.concatenate([d.prompt_ids, d.reply_ids]) for d in inputs.demonstrations[:PROBES]]

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Everybody up where the checkpoint left off, and every worker with the learner's weights."""
        strict = checkpoint is None  # a run that has worked before bears a member that dies now
        if checkpoint is not None and (checkpoint.directory / JUDGES).is_file():
            try:
                self.reward.load_cache(checkpoint.directory / JUDGES)
            except InputError as error:  # they will be asked again
                self._tell("judges forgotten", reason=str(error))
        self.rater_versions = self.reward.start(strict=strict)
        self.learner.start()
        self._restore(checkpoint)
        group_size, sampling = self.config.rollout.group_size, assembly.sampling(self.config)
        self.rollout.start(self.inputs.prompts[:1], group_size, sampling, strict=strict)
        self.sync(None, strict=strict)

    def iterate(self, number: int) -> Done:
        """One iteration: sample, score, measure λ, take a step, pass on the weights."""
        config, inputs = self.config, self.inputs
        self.seconds = {}
        version = self.learner.version
        demonstrations = [inputs.demonstrations[index] for index in self.demonstrations.take(config.anchor.rows)]

        with self._timed("rollout"):
            groups, cards = self.replies(number)
        with self._timed("reward"):
            judged = self.judge(groups, cards)
            compared = self.preference.examples([group.prompt for group in groups])
            examples = [replies[0] for replies in self.judge(compared)]
        with self._timed("learn"):
            mix = self.mix.update([group_scores(replies) for replies in judged])
            batch = self.preference.batch(groups, judged, {j.reply.prompt_id: j for j in examples}, mix.shares)
            learned = self.learner.step([*batch.items, *anchor_rows(demonstrations, inputs.vocabulary)], mix.mix)
        with self._timed("sync"):
            syncs, size = self.sync(mix.mix)

        iteration = describe(
            number, version, mix, judged, batch.uses, demonstrations, learned, syncs, size, self.seconds
        )
        return Done(
            iteration=iteration, judged=judged, uses=batch.uses, examples=examples, not_finite=learned.not_finite
        )

    def replies(self, number: int) -> tuple[list[Group], list[list[Scorecard]] | None]:
        """This iteration's groups: sampled, and not rated yet; or pairs from a file, with the scores they came with."""
        indices = self.prompts.take(self.config.rollout.prompts)
        if self.inputs.pairs:
            groups, cards = zip(
                *(recorded_group(self.inputs.pairs[i], self.inputs.vocabulary) for i in indices), strict=True
            )
            return list(groups), list(cards)
        prompts = [self.inputs.prompts[index] for index in indices]
        return self.sample(prompts, draw_seeds(self.config.run.seed, PROMPTS, number, len(prompts))), None

    def sample(self, prompts: list[Prompt], seeds: list[int], group_size: int | None = None) -> list[Group]:
        """A group for each prompt under the newest weights."""
        size = group_size or self.config.rollout.group_size
        return self.rollout.sample(prompts, size, assembly.sampling(self.config), seeds)

    def judge(self, groups: list[Group], cards: list[list[Scorecard]] | None = None) -> list[list[Judged]]:
        """Replies with scores and advantages. cards: None asks the raters."""
        cards = self.reward.score(groups) if cards is None else cards
        scoring, kind = assembly.scoring(self.config), self.config.preference.advantage
        return [judge(group, card, scoring, self.routes, kind) for group, card in zip(groups, cards, strict=True)]

    def sync(self, mix: float | None, *, strict: bool = False) -> tuple[dict[str, SyncReport], int]:
        """The learner's newest weights and λ to every worker, each of which proves that it holds them."""
        published = self.learner.publish(self._probe)
        probe = Probe(sequences=self._probe, logps=published.probe_logps)
        return self.rollout.update(published.path, published.version, mix, probe, strict=strict), published.size

    def evaluate(self, prompts: list[Prompt], number: int) -> tuple[list[Group], list[Judged]]:
        """One reply to each prompt, judged. The draws depend on `number`, the place of the evaluation set, alone."""
        seeds = draw_seeds(self.config.run.seed, EVALUATION, number, len(prompts))
        groups = self.sample(prompts, seeds, group_size=1)
        return groups, [replies[0] for replies in self.judge(groups)]

    @property
    def sizes(self) -> dict[str, int]:
        """How many members the pools are to have."""
        return {"rollout": self.rollout.target, "reward": self.reward.target}

    def scale(self, sizes: Mapping[str, int]) -> None:
        """Gives pools other sizes, which they come to while they work."""
        for name, members in sizes.items():
            {"rollout": self.rollout, "reward": self.reward}[name].resize(members)

    def state(self) -> dict[str, object]:
        """What the controller itself must remember to go on from here."""
        return {
            "mix": vars(self.mix.state),
            "weight_version": self.learner.version,
            "prompts": self.prompts.position,
            "demonstrations": self.demonstrations.position,
            "data": self.marks,
        }

    def save(self, directory: Path) -> None:
        """What the members must remember: model, optimiser, and what the judges said."""
        self.learner.save(directory)
        self.reward.save_cache(directory / JUDGES)

    def standing(self) -> Standing:
        """How the loop stands; may be asked from another thread."""
        learner = replace(self.learner.census(), restarts=self.learner_restarts)
        return Standing(
            phase=self.phase,
            seconds=time.monotonic() - self.since,
            pools={"rollout": self.rollout.census(), "reward": self.reward.census(), "learner": learner},
            versions={"learner": self.learner.version, "rollout": self.rollout.oldest_version},
        )

    def awaited(self) -> list[Waiting]:
        """Everybody, with what each was asked to do."""
        return [*self.rollout.awaited(), *self.reward.awaited(), *self.learner.awaited()]

    def restart_learner(self, checkpoint: Checkpoint | None) -> None:
        """A new learner group where the checkpoint left off; everybody else goes on living."""
        with suppress(RuntimeError):  # some of it is dead
            self.learner.stop()
        # Whoever waits for a place would take the next that there is, and a rank may have lost its own with its node.
        self.rollout.withdraw()
        self.reward.withdraw()
        self.learner = assembly.learner_group(self.config, self.inputs.family, self._run, self._learners)
        self.learner_restarts += 1
        self.learner.start()
        self._restore(checkpoint)
        self.sync(None)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Everything that the loop remembers, as it was then; None: as at the start."""
        state = (
            checkpoint.state if checkpoint else {"mix": None, "weight_version": 0, "prompts": 0, "demonstrations": 0}
        )
        self.mix = assembly.mix_ratio(self.config, state["mix"])
        self.prompts.position, self.demonstrations.position = state["prompts"], state["demonstrations"]
        if checkpoint is not None:
            self.learner.load(checkpoint.directory, state["weight_version"])

    def stop(self) -> None:
        """Ends all members, whatever state they are in."""
        for members in (self.rollout, self.reward, self.learner):
            with suppress(RuntimeError):
                members.stop()
        with suppress(RuntimeError):
            self._learners.give_up()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self.phase, self.since = phase, time.monotonic()
        try:
            yield
            self.seconds[phase] = time.monotonic() - self.since
        finally:
            self.phase, self.since = "", time.monotonic()
