"""The loop. Read this file to learn what Duet does; everything else is how."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cluster.actor_pool import ActorPool, SpeechPool
from cluster.stall_watchdog import PendingCall
from common.errors import InputError
from configs.routes import ScoreRoute
from configs.schema import Config
from controller import build
from controller.batch import anchor_rows, describe_iteration, group_of_pair
from controller.checkpointing import Checkpoint
from controller.inputs import RunInputs, build_samplers, fingerprints
from controller.pipeline import Pipeline, RolloutBatch
from data.sampler import EVALUATION, PROMPTS, draw_seeds
from observability.iteration import IterationStats
from observability.metrics.live import RunStatus
from observability.reply_schema import ReplyRecord
from reward.scoring import ScoredReply, group_scores, score_groups
from reward.types import Scorecard
from rollout.worker import SyncReport, WeightCheck
from speech.types import Prompt, ReplyGroup

JUDGES = "judges.parquet"
"""In a checkpoint: what the judges said so far."""
PROBES = 4
"""Demonstrations whose log-probabilities are compared between learner and workers after every sync."""


@dataclass(frozen=True, kw_only=True)
class IterationResult:
    """An iteration, for the records."""

    iteration: IterationStats
    judged: list[list[ScoredReply]]
    uses: list[list[str | None]]
    """What each reply served as."""
    examples: list[ScoredReply]
    """Demonstrations that were rated to be compared with."""
    not_finite: str | None
    """What was not finite, when the step was skipped."""

    def rows(self, routes: list[ScoreRoute]) -> list[ReplyRecord]:
        """Every reply that was rated."""
        used = [
            pair
            for replies, uses in zip(self.judged, self.uses, strict=True)
            for pair in zip(replies, uses, strict=True)
        ]
        used += [(judged, "compared") for judged in self.examples]
        labels = [route.label for route in routes]
        return [ReplyRecord(judged=judged, routes=labels, use=use) for judged, use in used]


@dataclass(frozen=True, kw_only=True)
class PrefetchedBatch:
    """An iteration whose replies are ordered."""

    position: int
    """Of the ledger of prompts before it."""
    indices: list[int]
    """Its rows of the data."""
    batch: RolloutBatch


class TrainingLoop:
    """One run: the pools, the mix ratio, and the steps of an iteration."""

    def __init__(self, config: Config, inputs: RunInputs, run: str, emit_event: build.EventSink) -> None:
        """emit_event: takes a kind and fields."""
        self.config, self.inputs, self._run, self._emit_event = config, inputs, run, emit_event
        # First of all, and for good: pools that grow, or replace a member, cannot take what the learner needs.
        self._learners = build.learner_place(config)
        self.learner = build.learner_group(config, inputs.family, run, self._learners)
        company: list[ActorPool] = []
        self.rollout = build.rollout_pool(config, inputs.family, emit_event, company)
        self.reward = build.reward_pool(config, inputs.family, emit_event, company)
        self.flow = Pipeline(self.rollout, self.reward, company)
        self._pools: dict[str, SpeechPool] = {"rollout": self.rollout, "reward": self.reward}
        if self.reward.decoders is not None:
            self._pools["decoder"] = self.reward.decoders
        self._ahead: dict[int, PrefetchedBatch] = {}
        """Iterations whose replies are ordered and not trained on, by number."""
        self._ordered = 0
        """The newest of them, or the one before the next."""
        self.mix = build.mix_ratio(config, None)
        self.preference = build.preference(config, inputs)
        self.routes = build.routes(config)
        self.prompts, self.demonstrations = build_samplers(config, inputs)
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
                self._emit_event("judge_cache_dropped", reason=str(error))
        group_size, sampling = self.config.rollout.n, build.sampling(self.config)
        self.rollout.begin(self.inputs.prompts[:1], group_size, sampling, strict=strict)
        self.reward.begin(strict=strict)
        self.learner.start()
        self._restore(checkpoint)
        self.rater_versions = self.reward.start(strict=strict)
        self.rollout.start(strict=strict)
        self.sync(None, strict=strict)

    def iterate(self, number: int) -> IterationResult:
        """One iteration: sample, score, measure λ, take a step, pass on the weights."""
        config, inputs = self.config, self.inputs
        self.seconds = {}
        version = self.learner.version
        demonstrations = [inputs.demonstrations[index] for index in self.demonstrations.take(config.anchor.batch_size)]

        busy = self._busy()
        with self._timed("rollout"):
            ahead = self._order(number)
            self.flow.pump(lambda: ahead.batch.drawn)
        with self._timed("reward"):
            self.flow.pump(lambda: ahead.batch.whole)
            groups, cards = self._collect(number)
            judged = self.judge(groups, cards)
            compared = self.preference.examples([group.prompt for group in groups])
            examples = [replies[0] for replies in self.judge(compared)]
        with self._timed("learn"):
            mix = self.mix.update([group_scores(replies) for replies in judged])
            batch = self.preference.batch(groups, judged, {j.reply.prompt_id: j for j in examples}, mix.shares)
            self.learner.begin([*batch.items, *anchor_rows(demonstrations, inputs.vocabulary)], mix.mix)
            self.flow.pump(self.learner.settled, self.learner.owed)
            learned = self.learner.finish()
        with self._timed("sync"):
            syncs, size = self.sync(mix.mix)

        iteration = describe_iteration(
            number,
            version,
            mix,
            judged,
            batch.uses,
            demonstrations,
            learned,
            syncs,
            size,
            self.seconds,
            self._idle(busy),
        )
        return IterationResult(
            iteration=iteration, judged=judged, uses=batch.uses, examples=examples, not_finite=learned.not_finite
        )

    def _order(self, number: int) -> "PrefetchedBatch":
        """Has this iteration's replies drawn and rated, and those of the iterations after it that may be drawn under
        weights so old. Each iteration is a step: what is ordered now has at most
        `rollout.max_staleness_steps` before its own."""
        last = min(number + self.config.rollout.max_staleness_steps, max(number, self.config.train.num_steps))
        while self._ordered < last:
            self._ordered += 1
            position, indices = self.prompts.position, self.prompts.take(self.config.rollout.batch_size)
            prompts = [] if self.inputs.pairs else [self.inputs.prompts[index] for index in indices]
            batch = self._draw(prompts, draw_seeds(self.config.run.seed, PROMPTS, self._ordered, len(prompts)))
            self._ahead[self._ordered] = PrefetchedBatch(position=position, indices=indices, batch=batch)
        return self._ahead[number]

    def _collect(self, number: int) -> tuple[list[ReplyGroup], list[list[Scorecard]]]:
        """An iteration's groups with their scores: those that were drawn, or pairs from a file as they came."""
        ahead = self._ahead.pop(number)
        if self.inputs.pairs:
            pairs = [group_of_pair(self.inputs.pairs[index], self.inputs.vocabulary) for index in ahead.indices]
            return [group for group, _ in pairs], [cards for _, cards in pairs]
        return ahead.batch.groups(), ahead.batch.scorecards()

    def _draw(self, prompts: list[Prompt], seeds: list[int], group_size: int | None = None) -> RolloutBatch:
        """Orders a group for each prompt."""
        size = group_size or self.config.rollout.n
        return self.flow.order(prompts, seeds, size, build.sampling(self.config))

    def call_off(self) -> None:
        """Gives up what was ordered for iterations to come."""
        self.flow.abandon()
        for ahead in self._ahead.values():
            self.prompts.position = min(self.prompts.position, ahead.position)
        self._ordered -= len(self._ahead)
        self._ahead.clear()

    def judge(self, groups: list[ReplyGroup], cards: list[list[Scorecard]] | None = None) -> list[list[ScoredReply]]:
        """Replies with scores and advantages. cards: None asks the raters."""
        cards = self.reward.score(groups) if cards is None else cards
        scoring, kind = build.scoring(self.config), self.config.algorithm.advantage_estimator
        return [
            score_groups(group, card, scoring, self.routes, kind) for group, card in zip(groups, cards, strict=True)
        ]

    def sync(self, mix: float | None, *, strict: bool = False) -> tuple[dict[str, SyncReport], int]:
        """The learner's newest weights and λ to every worker, each of which proves that it holds them."""
        published = self.learner.publish(self._probe)
        probe = WeightCheck(sequences=self._probe, logps=published.probe_logps)
        reports = self.rollout.update(published.update, mix, probe, strict=strict, broadcaster=self.learner)
        return reports, published.update.size

    def evaluate(self, prompts: list[Prompt], number: int) -> tuple[list[ReplyGroup], list[ScoredReply]]:
        """One reply to each prompt, judged. The draws depend on `number`, the place of the evaluation set, alone."""
        seeds = draw_seeds(self.config.run.seed, EVALUATION, number, len(prompts))
        batch = self._draw(prompts, seeds, group_size=1)
        self.flow.pump(lambda: batch.whole)
        groups = batch.groups()
        return groups, [replies[0] for replies in self.judge(groups, batch.scorecards())]

    @property
    def sizes(self) -> dict[str, int]:
        """How many members the pools are to have."""
        return {name: pool.target for name, pool in self._pools.items()}

    def scale(self, sizes: Mapping[str, int]) -> None:
        """Gives pools other sizes, which they come to while they work. Decoders that a run had before it was resumed
        without any are nobody's."""
        for name in self._pools.keys() & sizes.keys():
            self._pools[name].resize(sizes[name])

    def state(self) -> dict[str, object]:
        """What the controller itself must remember to go on from here."""
        return {
            "mix": vars(self.mix.state),
            "weight_version": self.learner.version,
            "prompts": min([self.prompts.position, *(ahead.position for ahead in self._ahead.values())]),
            "demonstrations": self.demonstrations.position,
            "data": self.marks,
        }

    def save(self, directory: Path) -> None:
        """What the members must remember: model, optimiser, and what the judges said."""
        self.learner.save(directory)
        self.reward.save_cache(directory / JUDGES)

    def standing(self) -> RunStatus:
        """How the loop stands; may be asked from another thread."""
        learner = replace(self.learner.status(), restarts=self.learner_restarts)
        return RunStatus(
            phase=self.phase,
            seconds=time.monotonic() - self.since,
            pools={name: pool.status() for name, pool in self._pools.items()} | {"learner": learner},
            versions={"learner": self.learner.version, "rollout": self.rollout.oldest_version},
        )

    def pending_calls(self) -> list[PendingCall]:
        """Everybody, with what each was asked to do."""
        return [w for pool in self._pools.values() for w in pool.pending_calls()] + self.learner.pending_calls()

    def restart_learner(self, checkpoint: Checkpoint | None) -> None:
        """A new learner group where the checkpoint left off; everybody else goes on living."""
        self.call_off()  # drawn under weights that are gone
        with suppress(RuntimeError):  # some of it is dead
            self.learner.stop()
        # Whoever waits for a place would take the next that there is, and a rank may have lost its own with its node.
        for pool in self._pools.values():
            pool.cancel_pending_starts()
        self.learner = build.learner_group(self.config, self.inputs.family, self._run, self._learners)
        self.learner_restarts += 1
        self.learner.start()
        self._restore(checkpoint)
        self.sync(None)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Everything that the loop remembers, as it was then; None: as at the start."""
        state = (
            checkpoint.state if checkpoint else {"mix": None, "weight_version": 0, "prompts": 0, "demonstrations": 0}
        )
        self.mix = build.mix_ratio(self.config, state["mix"])
        self.prompts.position, self.demonstrations.position = state["prompts"], state["demonstrations"]
        self._ordered = checkpoint.iteration if checkpoint else 0
        if checkpoint is not None:
            self.learner.load(checkpoint.directory, state["weight_version"])

    def stop(self) -> None:
        """Ends all members, whatever state they are in."""
        for stop in (*(pool.stop for pool in self._pools.values()), self.learner.stop):
            with suppress(RuntimeError):
                stop()
        with suppress(RuntimeError):
            self._learners.release()

    def _busy(self) -> dict[str, float]:
        """Seconds that the members of each pool have worked, all together."""
        return {name: pool.busy_seconds for name, pool in self._pools.items()}

    def _idle(self, before: Mapping[str, float]) -> dict[str, float]:
        """Share of the iteration in which members of each role had nothing to do. before: `_busy` at its start."""
        total = sum(self.seconds.values())
        sizes = self.sizes
        worked = {role: (seconds - before[role]) / sizes[role] for role, seconds in self._busy().items()}
        worked["learner"] = self.seconds["learn"]
        return {role: min(1.0, max(0.0, 1.0 - seconds / total)) for role, seconds in worked.items()}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self.phase, self.since = phase, time.monotonic()
        try:
            yield
            self.seconds[phase] = time.monotonic() - self.since
        finally:
            self.phase, self.since = "", time.monotonic()
