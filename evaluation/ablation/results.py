"""What came of the runs, put together: means over seeds, differences between arms, each with its interval."""

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
"""The evaluation set that decides."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """A finished run."""

    plan: RunPlan
    summary: Mapping
    """summary.json."""
    mix: tuple[float, float, float]
    """λ of the first iteration, the largest, λ of the last."""
    replies: int
    """Sampled in training."""
    truncated: int
    """Of those, the ones without an end."""
    before: Mapping[str, ValidationMetrics]
    """By evaluation set."""
    after: Mapping[str, ValidationMetrics]

    @property
    def minutes(self) -> float:
        return self.summary["seconds"]["total"] / 60

    @classmethod
    def read(cls, plan: RunPlan) -> "RunResult":
        """Reads the files of a finished run. Raises InputError when one is not there."""
        table = read_iterations(plan.directory)
        if any(table["mix_overridden"].to_pylist()):
            raise InputError(f"{plan.directory}: λ was set from outside in this run; move it away, and it is run again")
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
    """Finished runs side by side. Means of an arm are over its seeds; differences over the seeds that both have."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        """Raises InputError when the runs were not measured alike: other prompts, other raters, no headline set."""
        if not results:
            raise InputError("there is no finished run to compare; run `duet ablate` without --write")
        _check_alike(results)
        self.results = list(results)
        self.config = results[0].plan.config
        """Of one of the runs: what they share."""
        self._by_arm = {(r.plan.arm.name, r.plan.seed): r for r in results}
        self.sets = [HEADLINE, *(name for name in results[0].after if name != HEADLINE)]
        self._bootstraps = {name: Bootstrap(len(results[0].after[name].prompts)) for name in self.sets}
        # The same estimate is shown in several places.
        self.after = cache(self._after)
        self.change = cache(self._change)

    @property
    def arms(self) -> list[Arm]:
        """Those with a finished run."""
        return [arm for arm in ARMS.values() if self.seeds(arm.name)]

    def runs(self, arm: str) -> list[RunResult]:
        return [self._by_arm[arm, seed] for seed in self.seeds(arm)]

    def seeds(self, *arms: str) -> tuple[int, ...]:
        """Seeds with which all of these arms have run."""
        own = [{seed for name, seed in self._by_arm if name == arm} for arm in arms]
        return tuple(sorted(set.intersection(*own)))

    def prompts(self, name: str) -> int:
        """How many prompts an evaluation set has."""
        return self._bootstraps[name].prompts

    def before(self, name: str, kind: str, arm: str | None = None) -> Estimate | None:
        """A measure before training, mean of an arm's runs (None: of all runs)."""
        chosen = self.results if arm is None else self.runs(arm)
        return self._bootstraps[name].estimate(np.stack([r.before[name].values[kind] for r in chosen]))

    def _after(self, name: str, kind: str, arm: str, seeds: tuple[int, ...] | None = None) -> Estimate | None:
        """A measure after training with these seeds (None: all that the arm has)."""
        chosen = self.seeds(arm) if seeds is None else seeds
        return self._bootstraps[name].estimate(
            np.stack([self._by_arm[arm, seed].after[name].values[kind] for seed in chosen])
        )

    def _change(self, name: str, kind: str, arm: str, seeds: tuple[int, ...] | None = None) -> Estimate | None:
        """After − before, paired by prompt."""
        chosen = [self._by_arm[arm, seed] for seed in (self.seeds(arm) if seeds is None else seeds)]
        differences = [r.after[name].values[kind] - r.before[name].values[kind] for r in chosen]
        return self._bootstraps[name].estimate(np.stack(differences))

    def difference(self, name: str, kind: str, arm: str, other: str) -> Estimate | None:
        """arm − other after training, paired by prompt and seed; None without a common seed, or nothing measured."""
        seeds = self.seeds(arm, other)
        if not seeds:
            return None
        pairs = [(self._by_arm[arm, seed], self._by_arm[other, seed]) for seed in seeds]
        return self._bootstraps[name].estimate(
            np.stack([a.after[name].values[kind] - b.after[name].values[kind] for a, b in pairs])
        )

    def minutes(self, arms: Iterable[str]) -> float:
        """Of all runs of these arms together."""
        return sum(r.minutes for r in self.results if r.plan.arm.name in set(arms))


def _check_alike(results: Sequence[RunResult]) -> None:
    first = results[0]
    if HEADLINE not in first.after:
        raise InputError(f"data.validation: a comparison needs the evaluation set {HEADLINE!r}")
    for result in results:
        for evaluations in (result.before, result.after):
            for name, evaluation in evaluations.items():
                if name not in first.after or evaluation.prompts != first.after[name].prompts:
                    raise InputError(
                        f"{result.plan.directory} was evaluated on other prompts of {name} than "
                        f"{first.plan.directory}; give every run the same data.validation"
                    )
        ours, theirs = result.summary.get("raters", {}), first.summary.get("raters", {})
        if ours != theirs:
            raise InputError(
                f"{result.plan.directory} was rated by {ours}, {first.plan.directory} by {theirs}; scores of different "
                "raters cannot be compared"
            )
