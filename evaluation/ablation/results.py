"""Results of finished runs: means over seeds and differences between arms, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from common.errors import InputError
from evaluation.ablation.arms import ARMS, Arm, RunPlan
from evaluation.ablation.bootstrap import Bootstrap, Estimate
from evaluation.ablation.metrics import ValidationMetrics, metric_named
from observability.run_directory import read_iterations, read_summary

HEADLINE = "held_out"
"""Evaluation set for claims and the front."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """Results of one finished run."""

    plan: RunPlan
    summary: Mapping
    """Content of summary.json."""
    mix: tuple[float, float, float]
    """λ of the first iteration, maximum λ, λ of the last iteration."""
    replies: int
    """Number of replies sampled in training."""
    truncated: int
    """Number of these that were truncated."""
    before: Mapping[str, ValidationMetrics]
    """Metrics before training, by evaluation set."""
    after: Mapping[str, ValidationMetrics]
    """Metrics after training, by evaluation set."""

    @property
    def minutes(self) -> float:
        return self.summary["seconds"]["total"] / 60

    @classmethod
    def read(cls, plan: RunPlan) -> "RunResult":
        """Read the files of a finished run. Raises InputError if one is missing."""
        table = read_iterations(plan.directory)
        if any(table["mix_overridden"].to_pylist()):
            raise InputError(f"{plan.directory}: λ was set externally in this run; move the run away to run it again")
        mix = table["lambda"].to_pylist()
        before, after = (
            {name: metric_named(plan.directory, when, name, plan.config) for name in plan.config.data.validation}
            for when in ("before", "after")
        )
        return cls(
            plan=plan,
            summary=read_summary(plan.directory),
            mix=(mix[0], max(mix), mix[-1]),
            replies=sum(table["replies"].to_pylist()),
            truncated=sum(table["replies_truncated"].to_pylist()),
            before=before,
            after=after,
        )


class AblationResults:
    """Comparison of finished runs. Means are over an arm's seeds, differences over common seeds."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        """Raises InputError if runs differ in prompts or raters, or lack the headline set."""
        if not results:
            raise InputError("no finished run to compare; run `duet ablate` without --write")
        _check_alike(results)
        self.results = list(results)
        self.config = results[0].plan.config
        """Configuration of one run, for shared settings."""
        self._by_arm = {(r.plan.arm.name, r.plan.seed): r for r in results}
        self.sets = [HEADLINE, *(name for name in results[0].after if name != HEADLINE)]
        self._bootstraps = {name: Bootstrap(len(results[0].after[name].prompts)) for name in self.sets}
        # The page shows the same estimate in several places.
        self.after = cache(self._after)
        self.change = cache(self._change)

    @property
    def arms(self) -> list[Arm]:
        """Return the arms with a finished run."""
        return [arm for arm in ARMS.values() if self.seeds(arm.name)]

    def runs(self, arm: str) -> list[RunResult]:
        return [self._by_arm[arm, seed] for seed in self.seeds(arm)]

    def seeds(self, *arms: str) -> tuple[int, ...]:
        """Return the seeds common to all of these arms."""
        own = [{seed for name, seed in self._by_arm if name == arm} for arm in arms]
        return tuple(sorted(set.intersection(*own)))

    def prompts(self, name: str) -> int:
        """Return the number of prompts in an evaluation set."""
        return self._bootstraps[name].prompts

    def before(self, name: str, kind: str, arm: str | None = None) -> Estimate | None:
        """Estimate a metric before training, over an arm's runs (None: all runs)."""
        chosen = self.results if arm is None else self.runs(arm)
        return self._bootstraps[name].estimate(np.stack([r.before[name].values[kind] for r in chosen]))

    def _after(self, name: str, kind: str, arm: str, seeds: tuple[int, ...] | None = None) -> Estimate | None:
        """Estimate a metric after training, over these seeds (None: all seeds of the arm)."""
        chosen = self.seeds(arm) if seeds is None else seeds
        return self._bootstraps[name].estimate(
            np.stack([self._by_arm[arm, seed].after[name].values[kind] for seed in chosen])
        )

    def _change(self, name: str, kind: str, arm: str, seeds: tuple[int, ...] | None = None) -> Estimate | None:
        """Estimate after − before, paired by prompt."""
        chosen = [self._by_arm[arm, seed] for seed in (self.seeds(arm) if seeds is None else seeds)]
        differences = [r.after[name].values[kind] - r.before[name].values[kind] for r in chosen]
        return self._bootstraps[name].estimate(np.stack(differences))

    def difference(self, name: str, kind: str, arm: str, other: str) -> Estimate | None:
        """Estimate arm − other after training, paired by prompt and seed. None without common seeds or scores."""
        seeds = self.seeds(arm, other)
        if not seeds:
            return None
        pairs = [(self._by_arm[arm, seed], self._by_arm[other, seed]) for seed in seeds]
        return self._bootstraps[name].estimate(
            np.stack([a.after[name].values[kind] - b.after[name].values[kind] for a, b in pairs])
        )

    def minutes(self, arms: Iterable[str]) -> float:
        """Return the total duration of these arms' runs, in minutes."""
        return sum(r.minutes for r in self.results if r.plan.arm.name in set(arms))


def _check_alike(results: Sequence[RunResult]) -> None:
    first = results[0]
    if HEADLINE not in first.after:
        raise InputError(f"data.validation: a comparison requires the evaluation set {HEADLINE!r}; add it")
    for result in results:
        for evaluations in (result.before, result.after):
            for name, evaluation in evaluations.items():
                if name not in first.after or evaluation.prompts != first.after[name].prompts:
                    raise InputError(
                        f"{result.plan.directory} was evaluated on other prompts of {name} than "
                        f"{first.plan.directory}; use the same data.validation for every run"
                    )
        ours, theirs = result.summary.get("raters", {}), first.summary.get("raters", {})
        if ours != theirs:
            raise InputError(
                f"{result.plan.directory} was rated by {ours}, {first.plan.directory} by {theirs}; scores of different "
                "raters cannot be compared"
            )
