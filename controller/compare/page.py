"""The page of a comparison, in Markdown. Its numbers come from the runs, the configuration and the paper."""

from collections.abc import Sequence
from typing import Any

from controller.arithmetic import arithmetic
from controller.compare import tables
from controller.compare.bootstrap import RESAMPLES
from controller.compare.measures import MEASURES, Measure
from controller.compare.results import HEADLINE, Comparison
from controller.compare.verdicts import METHOD, Front, Judged, front, judge, paper_front


def page(comparison: Comparison, command: str, picture: str, left_out: Sequence[str] = ()) -> str:
    """The whole page.

    command: makes the runs and the page. picture: the plot, relative to the page. left_out: keys of the configuration
    that another version of Duet had when the runs were made.
    """
    judged, paper = judge(comparison), paper_front(comparison)
    parts = [
        _head(comparison, command),
        _settings(comparison, left_out),
        _arms(comparison, picture),
        _claims(comparison, judged, paper),
        _front(comparison, paper),
        *(_other_set(comparison, name) for name in comparison.sets[1:]),
        _runs(comparison),
    ]
    return "\n".join(line for part in parts for line in part).rstrip("\n") + "\n"


def _head(comparison: Comparison, command: str) -> list[str]:
    scale = comparison.config.mix
    sets = ", ".join(f"`{name}` ({comparison.prompts(name):,} prompts)" for name in comparison.sets)
    return [
        "# The arms of the paper, side by side",
        "",
        "Made by this command, which runs what is missing; not to be edited by hand:",
        "",
        f"    {command}",
        "",
        "Each arm is a way to train from WavAlign (arXiv 2604.14932) or from later work. All arms start from the same "
        "checkpoint and take the same prompts, demonstrations and number of optimiser steps; a seed decides the order "
        "of the data and every draw of the sampler. Before and after training the model answers the held-out sets "
        f"{sets} once, in every arm with the same seeds of the sampler: everything is compared prompt by prompt.",
        "",
        *(f"- **{kind.caption}**: {kind.meaning}{_parts(comparison, kind)}" for kind in MEASURES.values()),
        f"- Scores go from {scale.lowest_score:g} to {scale.highest_score:g}. A reply without a score through its own "
        "fault (truncated, malformed, no speech) counts as wrong in a share and as the lowest score in a mean; where a "
        "rater failed, the prompt is left out of the measure. The table counts both, a mean over the runs.",
        f"- Brackets: 95 % interval of a bootstrap over prompts ({RESAMPLES:,} resamples, the same prompts for all "
        "arms and seeds). It says how much the choice of prompts matters. How much the seed of the training matters is "
        "shown beside it, as the standard deviation over seeds or seed by seed.",
        "",
    ]


def _parts(comparison: Comparison, kind: Measure) -> str:
    """What a combined score is made of."""
    parts = comparison.config.reward.scores.get(kind.score)
    return f" ({', '.join(f'{weight:g} × {rater}' for rater, weight in parts.items())})" if parts else ""


def _settings(comparison: Comparison, left_out: Sequence[str]) -> list[str]:
    c = comparison.config
    combined = {"total": c.reward.total, **c.reward.scores}
    rows = [
        ("model", f"{c.model.family}, {c.model.dtype}"),
        *arithmetic(c),
        ("learning rate", f"{c.learner.learning_rate:g}, {c.learner.warmup} steps of warm-up"),
        ("sampler", f"temperature {c.rollout.temperature:g}, at most {c.rollout.max_tokens} tokens a reply"),
        (
            "preference",
            f"clip {c.preference.clip:g}, KL {c.preference.kl_text:g} text, {c.preference.kl_speech:g} speech",
        ),
        ("λ where it is adaptive", f"at most {c.mix.largest:g}; slope {c.mix.slope:g}, threshold {c.mix.threshold:g}"),
        *(
            (f"score {name}", ", ".join(f"{w:g} × {rater}" for rater, w in parts.items()))
            for name, parts in combined.items()
        ),
        ("raters", _distinct(comparison, "raters")),
        ("members", _distinct(comparison, "workers")),
        ("versions", _distinct(comparison, "versions")),
    ]
    note = []
    if left_out:
        note = [
            "The runs were made by a version of Duet with other keys in its configuration; these could not be compared "
            f"with today's: {', '.join(f'`{key}`' for key in left_out)}.",
            "",
        ]
    return [
        "## Settings",
        "",
        "Those that all arms share, unless an arm says otherwise.",
        *tables.table(("", ""), rows),
        *note,
    ]


def _distinct(comparison: Comparison, key: str) -> str:
    """A mapping of summary.json, or the several that the runs have."""
    found: list[dict[str, Any]] = []
    for result in comparison.results:
        if (value := result.summary.get(key)) and value not in found:
            found.append(value)
    return "; or ".join(", ".join(f"{name} {value}" for name, value in one.items()) for one in found) or tables.NONE


def _arms(comparison: Comparison, picture: str) -> list[str]:
    return [
        "## Arms",
        "",
        f"On `{HEADLINE}`: after training, and under it the change since before.",
        *tables.arms_table(comparison, HEADLINE),
        f"![IQ and EQ of the arms]({picture})",
        "",
        "Standard deviation over seeds; and of the training λ and minutes, means over the runs, and how many of all "
        "sampled replies were truncated.",
        *tables.training_table(comparison),
    ]


def _claims(comparison: Comparison, judged: Sequence[Judged], paper: Front | None) -> list[str]:
    minutes = comparison.minutes(paper.arms) if paper else 0.0
    rows = tables.claims_table(judged, paper, METHOD, minutes)
    return [
        "## What the paper found, and what is found here",
        "",
        "A claim is *reproduced* when the whole 95 % interval of the difference (first arm − second, after training, "
        "over the seeds that both have) lies on the claimed side of 0, *not reproduced* when it lies on the other "
        "side, and *undecided* when it contains 0, when a seed points the other way, or with one seed. The front is "
        "decided by the share of resamples, reproduced from 97.5 %, not reproduced up to 2.5 %, and by each seed "
        "alone, which must agree. Where nothing is claimed, the verdict says which side the difference lies on. The "
        "paper's numbers are of other models, data and judges than these: it is the direction that can agree.",
        *rows,
    ]


def _front(comparison: Comparison, paper: Front | None) -> list[str]:
    every = front(comparison, [arm.name for arm in comparison.arms])
    rows = tables.front_table(paper, every)
    if not rows:
        return []
    return [
        "## Pareto front",
        "",
        "An arm is on the front when no other is at least as high in both IQ and EQ and higher in one: by the means, "
        "and the share of resamples in which it is. The paper's arms are those of its table of IQ and EQ.",
        *rows,
    ]


def _other_set(comparison: Comparison, name: str) -> list[str]:
    return [
        f"## On `{name}`",
        "",
        f"The same measures on the {comparison.prompts(name):,} prompts of another set.",
        *tables.arms_table(comparison, name),
    ]


def _runs(comparison: Comparison) -> list[str]:
    gaps = []
    for gap, what in zip(tables.GAPS, ("on sampled tokens", "on the probe after a sync"), strict=True):
        values = [v for result in comparison.results if (v := result.summary.get(gap)) is not None]
        if values:
            gaps.append(f"{max(values):.1e} {what}")
    total = sum(result.minutes for result in comparison.results)
    lines = [f"{len(comparison.results)} runs, {total:.0f} minutes in all."]
    if gaps:
        lines[0] += f" Largest difference of a log-probability between sampler and learner: {', '.join(gaps)}."
    return ["## Runs", "", f"On `{HEADLINE}`.", *tables.runs_table(comparison), *lines]
