"""The training loop: generate, score, measure λ, train, sync weights. Start reading Duet here."""

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

JUDGE_CACHE = "judges.parquet"
"""File of a checkpoint with the judges' cached answers."""
NUM_PROBES = 4
"""Demonstrations whose log-probabilities learner and workers compare after every weight sync."""


@dataclass(frozen=True, kw_only=True)
class IterationResult:
    """Result of an iteration, for the records."""

    iteration: IterationStats
    scored: list[list[ScoredReply]]
    uses: list[list[str | None]]
    """Role of each reply in the batch."""
    examples: list[ScoredReply]
    """Demonstrations that were scored for comparison."""
    not_finite: str | None
    """The value that was not finite, if the step was skipped."""

    def rows(self, routes: list[ScoreRoute]) -> list[ReplyRecord]:
        """Return a record of every scored reply."""
        used = [
            pair
            for replies, uses in zip(self.scored, self.uses, strict=True)
            for pair in zip(replies, uses, strict=True)
        ]
        used += [(reply, "compared") for reply in self.examples]
        labels = [route.label for route in routes]
        return [ReplyRecord(judged=reply, routes=labels, use=use) for reply, use in used]


@dataclass(frozen=True, kw_only=True)
class PrefetchedBatch:
    """Batch of an iteration whose replies are submitted."""

    position: int
    """Position of the prompt sampler before the batch."""
    indices: list[int]
    """Rows of the data."""
    batch: RolloutBatch


class TrainingLoop:
    """One run: the pools, the mix ratio, and the steps of an iteration."""

    def __init__(self, config: Config, inputs: RunInputs, run: str, emit_event: build.EventSink) -> None:
        """emit_event: takes a kind and fields."""
        self.config, self.inputs, self._run, self._emit_event = config, inputs, run, emit_event
        # First, and for the whole run: growing or restarting pools cannot take the learner's resources.
        self._learner_placement = build.learner_place(config)
        self.learner = build.learner_group(config, inputs.family, run, self._learner_placement)
        actor_pools: list[ActorPool] = []
        self.rollout = build.rollout_pool(config, inputs.family, emit_event, actor_pools)
        self.reward = build.reward_pool(config, inputs.family, emit_event, actor_pools)
        self.pipeline = Pipeline(self.rollout, self.reward, actor_pools)
        self._pools: dict[str, SpeechPool] = {"rollout": self.rollout, "reward": self.reward}
        if self.reward.decoders is not None:
            self._pools["decoder"] = self.reward.decoders
        self._prefetched: dict[int, PrefetchedBatch] = {}
        """Batches that are submitted and not trained on, by iteration."""
        self._submitted = 0
        """Newest submitted iteration."""
        self.mix_ratio = build.mix_ratio(config, None)
        self.batch_builder = build.preference(config, inputs)
        self.routes = build.routes(config)
        self.prompts, self.demonstrations = build_samplers(config, inputs)
        self.rater_versions: dict[str, str] = {}
        self.phase, self.since = "", time.monotonic()
        """Phase of the current iteration, empty between iterations, and its start time."""
        self.learner_restarts = 0
        self.seconds: dict[str, float] = {}
        self.fingerprints = fingerprints(inputs)
        self._probe = [np.concatenate([d.prompt_ids, d.reply_ids]) for d in inputs.demonstrations[:NUM_PROBES]]

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Start all actors, restore the checkpoint, sync weights to every worker."""
        strict = checkpoint is None  # a run that has worked before tolerates actors that die now
        if checkpoint is not None and (checkpoint.directory / JUDGE_CACHE).is_file():
            try:
                self.reward.load_cache(checkpoint.directory / JUDGE_CACHE)
            except InputError as error:  # replies are scored again
                self._emit_event("judge_cache_dropped", reason=str(error))
        group_size, sampling = self.config.rollout.n, build.sampling(self.config)
        self.rollout.begin(self.inputs.prompts[:1], group_size, sampling, strict=strict)
        self.reward.begin(strict=strict)
        self.learner.start()
        self._restore(checkpoint)
        self.rater_versions = self.reward.start(strict=strict)
        self.rollout.start(strict=strict)
        self.sync_weights(None, strict=strict)

    def train_step(self, number: int) -> IterationResult:
        """Run one iteration: generate, score, measure λ, take a step, sync weights."""
        config, inputs = self.config, self.inputs
        self.seconds = {}
        version = self.learner.version
        demonstrations = [inputs.demonstrations[index] for index in self.demonstrations.take(config.anchor.batch_size)]

        busy = self._busy()
        with self._timed("rollout"):
            prefetched = self._prefetch(number)
            self.pipeline.run_until(lambda: prefetched.batch.generated)
        with self._timed("reward"):
            self.pipeline.run_until(lambda: prefetched.batch.scored)
            groups, cards = self._collect(number)
            scored = self.score(groups, cards)
            compared = self.batch_builder.examples([group.prompt for group in groups])
            examples = [replies[0] for replies in self.score(compared)]
        with self._timed("learn"):
            mix = self.mix_ratio.update([group_scores(replies) for replies in scored])
            by_prompt = {example.reply.prompt_id: example for example in examples}
            batch = self.batch_builder.batch(groups, scored, by_prompt, mix.group_weights)
            self.learner.begin([*batch.items, *anchor_rows(demonstrations, inputs.vocabulary)], mix.mix)
            self.pipeline.run_until(self.learner.settled, self.learner.owed)
            learned = self.learner.finish()
        with self._timed("sync"):
            syncs, size = self.sync_weights(mix.mix)

        iteration = describe_iteration(
            number,
            version,
            mix,
            scored,
            batch.uses,
            demonstrations,
            learned,
            syncs,
            size,
            self.seconds,
            self._idle(busy),
        )
        return IterationResult(
            iteration=iteration, scored=scored, uses=batch.uses, examples=examples, not_finite=learned.not_finite
        )

    def _prefetch(self, number: int) -> "PrefetchedBatch":
        """Submit the replies of this iteration, and of later ones as far as `rollout.max_staleness_steps` allows.
        Return the batch of this iteration. Each iteration is one optimizer step, so a batch submitted now is trained on
        at most `rollout.max_staleness_steps` steps later."""
        last = min(number + self.config.rollout.max_staleness_steps, max(number, self.config.train.num_steps))
        while self._submitted < last:
            self._submitted += 1
            position, indices = self.prompts.position, self.prompts.take(self.config.rollout.batch_size)
            prompts = [] if self.inputs.pairs else [self.inputs.prompts[index] for index in indices]
            batch = self._submit(prompts, draw_seeds(self.config.run.seed, PROMPTS, self._submitted, len(prompts)))
            self._prefetched[self._submitted] = PrefetchedBatch(position=position, indices=indices, batch=batch)
        return self._prefetched[number]

    def _collect(self, number: int) -> tuple[list[ReplyGroup], list[list[Scorecard]]]:
        """Return an iteration's groups with their scorecards: generated ones, or pairs from a file."""
        prefetched = self._prefetched.pop(number)
        if self.inputs.pairs:
            pairs = [group_of_pair(self.inputs.pairs[index], self.inputs.vocabulary) for index in prefetched.indices]
            return [group for group, _ in pairs], [cards for _, cards in pairs]
        return prefetched.batch.groups(), prefetched.batch.scorecards()

    def _submit(self, prompts: list[Prompt], seeds: list[int], group_size: int | None = None) -> RolloutBatch:
        """Submit a group for each prompt."""
        size = group_size or self.config.rollout.n
        return self.pipeline.submit(prompts, seeds, size, build.sampling(self.config))

    def cancel_prefetched(self) -> None:
        """Abort batches of later iterations, and return their prompts to the sampler."""
        self.pipeline.abort_all()
        for prefetched in self._prefetched.values():
            self.prompts.position = min(self.prompts.position, prefetched.position)
        self._submitted -= len(self._prefetched)
        self._prefetched.clear()

    def score(self, groups: list[ReplyGroup], cards: list[list[Scorecard]] | None = None) -> list[list[ScoredReply]]:
        """Return replies with scores and advantages. cards: None calls the raters."""
        cards = self.reward.score(groups) if cards is None else cards
        scoring, kind = build.scoring(self.config), self.config.algorithm.advantage_estimator
        return [
            score_groups(group, card, scoring, self.routes, kind) for group, card in zip(groups, cards, strict=True)
        ]

    def sync_weights(self, mix: float | None, *, strict: bool = False) -> tuple[dict[str, SyncReport], int]:
        """Send the learner's newest weights and λ to every worker, and check that each one holds them."""
        published = self.learner.publish(self._probe)
        probe = WeightCheck(sequences=self._probe, logps=published.probe_logps)
        reports = self.rollout.update(published.update, mix, probe, strict=strict, broadcaster=self.learner)
        return reports, published.update.size

    def evaluate(self, prompts: list[Prompt], number: int) -> tuple[list[ReplyGroup], list[ScoredReply]]:
        """Generate and score one reply per prompt. Seeds depend on `number` alone, the index of the evaluation set."""
        seeds = draw_seeds(self.config.run.seed, EVALUATION, number, len(prompts))
        batch = self._submit(prompts, seeds, group_size=1)
        self.pipeline.run_until(lambda: batch.scored)
        groups = batch.groups()
        return groups, [replies[0] for replies in self.score(groups, batch.scorecards())]

    @property
    def sizes(self) -> dict[str, int]:
        """Target sizes of the pools."""
        return {name: pool.target for name, pool in self._pools.items()}

    def scale(self, sizes: Mapping[str, int]) -> None:
        """Set target sizes; pools converge while working. Sizes of pools that no longer exist are ignored."""
        for name in self._pools.keys() & sizes.keys():
            self._pools[name].resize(sizes[name])

    def state(self) -> dict[str, object]:
        """Return the controller's part of a checkpoint."""
        return {
            "mix": vars(self.mix_ratio.state),
            "weight_version": self.learner.version,
            "prompts": min([self.prompts.position, *(batch.position for batch in self._prefetched.values())]),
            "demonstrations": self.demonstrations.position,
            "data": self.fingerprints,
        }

    def save(self, directory: Path) -> None:
        """Write the actors' part of a checkpoint: model, optimizer and judge cache."""
        self.learner.save(directory)
        self.reward.save_cache(directory / JUDGE_CACHE)

    def status(self) -> RunStatus:
        """Return the status of the run. Thread-safe."""
        learner = replace(self.learner.status(), restarts=self.learner_restarts)
        return RunStatus(
            phase=self.phase,
            seconds=time.monotonic() - self.since,
            pools={name: pool.status() for name, pool in self._pools.items()} | {"learner": learner},
            versions={"learner": self.learner.version, "rollout": self.rollout.oldest_version},
        )

    def pending_calls(self) -> list[PendingCall]:
        """Return every actor with its pending call, if any."""
        return [call for pool in self._pools.values() for call in pool.pending_calls()] + self.learner.pending_calls()

    def restart_learner(self, checkpoint: Checkpoint | None) -> None:
        """Start a new learner group from a checkpoint. The pools continue."""
        self.cancel_prefetched()  # generated with weights that are lost
        with suppress(RuntimeError):  # some ranks are dead
            self.learner.stop()
        # A pending start would take the next free resources, and a rank may have lost its own with its node.
        for pool in self._pools.values():
            pool.cancel_pending_starts()
        self.learner = build.learner_group(self.config, self.inputs.family, self._run, self._learner_placement)
        self.learner_restarts += 1
        self.learner.start()
        self._restore(checkpoint)
        self.sync_weights(None)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Restore the state of a checkpoint. None: the state at the start."""
        state = (
            checkpoint.state if checkpoint else {"mix": None, "weight_version": 0, "prompts": 0, "demonstrations": 0}
        )
        self.mix_ratio = build.mix_ratio(self.config, state["mix"])
        self.prompts.position, self.demonstrations.position = state["prompts"], state["demonstrations"]
        self._submitted = checkpoint.iteration if checkpoint else 0
        if checkpoint is not None:
            self.learner.load(checkpoint.directory, state["weight_version"])

    def stop(self) -> None:
        """Stop all actors, in any state."""
        for stop in (*(pool.stop for pool in self._pools.values()), self.learner.stop):
            with suppress(RuntimeError):
                stop()
        with suppress(RuntimeError):
            self._learner_placement.release()

    def _busy(self) -> dict[str, float]:
        """Return busy seconds of each pool, summed over its actors."""
        return {name: pool.busy_seconds for name, pool in self._pools.items()}

    def _idle(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return the share of the iteration in which each role's actors were idle. before: `_busy` at its start."""
        total = sum(self.seconds.values())
        sizes = self.sizes
        busy = {role: (seconds - before[role]) / sizes[role] for role, seconds in self._busy().items()}
        busy["learner"] = self.seconds["learn"]
        return {role: min(1.0, max(0.0, 1.0 - seconds / total)) for role, seconds in busy.items()}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self.phase, self.since = phase, time.monotonic()
        try:
            yield
            self.seconds[phase] = time.monotonic() - self.since
        finally:
            self.phase, self.since = "", time.monotonic()
