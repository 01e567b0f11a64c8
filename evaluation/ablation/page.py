"""Markdown page of a comparison, its tables, and comparison.parquet."""

import shlex
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.validate import batch_summary
from evaluation.ablation.bootstrap import RESAMPLES, Estimate
from evaluation.ablation.claims import METHOD, ClaimResult, ParetoFront, judge_claims, paper_front, pareto_front
from evaluation.ablation.metrics import MEASURES, Metric
from evaluation.ablation.results import HEADLINE, AblationResults, RunResult
from observability.console import format_number, format_signed

NONE = "–"


GAPS = ("logp_gap_largest", "probe_gap_largest")
"""Keys in summary.json: log-probability gap of sampler and learner, on sampled tokens and on the probe after a sync."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table between empty lines."""
    lines = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines), ""]


def short(path: Path) -> str:
    """Return the path relative to the working directory, if it lies below it."""
    path, here = path.absolute(), Path.cwd()
    return relpath(path, here) if path.is_relative_to(here) else str(path)


def command(result: RunResult) -> str:
    """Return the command of a run."""
    arguments = list(result.plan.arguments)
    arguments[1] = short(Path(arguments[1]))
    return shlex.join(["duet", "train", *arguments])


def arms_table(comparison: AblationResults, name: str) -> list[str]:
    """Return one row per arm for an evaluation set: each metric after training, and its change."""
    head = ["arm", "seeds", *(kind.caption for kind in MEASURES.values()), "without a score", "rater failed"]
    runs = comparison.results
    before = [_interval(comparison.before(name, kind), measure.digits) for kind, measure in MEASURES.items()]
    counts = [_mean([r.before[name].unratable for r in runs]), _mean([r.before[name].unrated for r in runs])]
    rows = [["before training", "", *before, *counts]]
    for arm in comparison.arms:
        cells = []
        for kind, measure in MEASURES.items():
            after, change = comparison.after(name, kind, arm.name), comparison.change(name, kind, arm.name)
            moved = f"<br>{_interval(change, measure.digits, sign=True)}" if change else ""
            cells.append(_interval(after, measure.digits) + moved)
        own = comparison.runs(arm.name)
        counts = [_mean([r.after[name].unratable for r in own]), _mean([r.after[name].unrated for r in own])]
        rows.append([f"**{arm.name}**: {arm.caption}", _seeds(comparison.seeds(arm.name)), *cells, *counts])
    return table(head, rows)


def training_table(comparison: AblationResults) -> list[str]:
    """Return one row per arm: spread over seeds on the headline set, and training statistics."""
    head = ["arm", "IQ ± over seeds", "EQ ± over seeds", "λ first", "largest", "last", "truncated replies", "minutes"]
    rows = []
    for arm in comparison.arms:
        own = comparison.runs(arm.name)
        spreads = []
        for kind in ("iq", "eq"):
            after = comparison.after(HEADLINE, kind, arm.name)
            spreads.append(format_number(after.spread if after else None, f".{MEASURES[kind].digits}f"))
        mix = [f"{sum(r.mix[place] for r in own) / len(own):.3f}" for place in range(3)]
        truncated = f"{sum(r.truncated for r in own):,} of {sum(r.replies for r in own):,}"
        minutes = f"{sum(r.minutes for r in own) / len(own):.1f}"
        rows.append([arm.name, *spreads, *mix, truncated, minutes])
    return table(head, rows)


def claims_table(judged: Sequence[ClaimResult], front: ParetoFront | None, method: str, minutes: float) -> list[str]:
    """Return one row per claim: published and measured numbers, difference, verdict. minutes: of the front's runs."""
    head = ["claim", "measure", "paper", "ours", "difference [95 %]", "by seed", "verdict", "minutes"]
    rows = []
    for one in judged:
        claim, measure = one.claim, MEASURES[one.claim.measure]
        sign = {"higher": ">", "lower": "<", "open": "against"}[claim.direction]
        paper = " against ".join(f"{value:.2f}" for value in claim.published) if claim.published else "no numbers"
        ours = " against ".join(f"{value:.{measure.digits}f}" for value in one.ours)
        rows.append(
            [
                f"{claim.statement}: `{claim.arm}` {sign} {f'`{claim.other}`' if claim.other else 'before training'}",
                measure.caption,
                f"{paper} ({claim.note})" if claim.note else paper,
                ours,
                _interval(one.difference, measure.digits, sign=True),
                ", ".join(format_signed(value, measure.digits) for value in one.difference.by_seed),
                f"**{one.verdict}**",
                f"{one.minutes:.0f}",
            ]
        )
    if front and method in front.arms:
        place = front.arms.index(method)
        rows.append(
            [
                f"`{method}` is on the Pareto front among {', '.join(f'`{arm}`' for arm in front.arms)}",
                "IQ and EQ",
                "on it, alone: highest in both (VITA-Audio)",
                "on it" if front.on[place] else "not on it",
                f"on it in {100 * front.share[place]:.1f} % of resamples",
                NONE,
                f"**{front.verdict(method)}**",
                f"{minutes:.0f}",
            ]
        )
    return table(head, rows)


def front_table(paper: ParetoFront | None, every: ParetoFront | None) -> list[str]:
    """Return one row per arm: membership in the front of the paper's arms and of all arms."""
    rows = []
    for arm in every.arms if every else ():
        cells = []
        for each in (paper, every):
            if each and arm in each.arms:
                place = each.arms.index(arm)
                cells.append(f"{'yes' if each.on[place] else 'no'}, {100 * each.share[place]:.1f} %")
            else:
                cells.append(NONE)
        rows.append([arm, *cells])
    return table(["arm", "on the front of the paper's arms", "on the front of all arms"], rows) if rows else []


def runs_table(comparison: AblationResults) -> list[str]:
    """Return one row per run, with its command."""
    captions = [f"{MEASURES[kind].caption} before → after" for kind in ("iq", "eq")]
    rows = []
    for result in sorted(comparison.results, key=lambda r: r.plan.seed):
        moves = []
        for kind in ("iq", "eq"):
            digits = MEASURES[kind].digits
            pair = (one[HEADLINE].mean(kind) for one in (result.before, result.after))
            moves.append(" → ".join(format_number(value, f".{digits}f") for value in pair))
        gaps = [format_number(result.summary.get(gap), ".1e") for gap in GAPS]
        rows.append([result.plan.name, f"`{command(result)}`", *moves, *gaps, f"{result.minutes:.1f}"])
    return table(["run", "command", *captions, *GAPS, "minutes"], rows)


def records(comparison: AblationResults) -> pa.Table:
    """Return comparison.parquet: one row per arm (seed null) and one per run, for each evaluation set.

    Each metric NAME has the columns NAME (after training), NAME_low, NAME_high, NAME_change, NAME_change_low and
    NAME_change_high, and for arms NAME_spread (standard deviation over seeds). Shares are percentages.
    """
    rows = []
    for name in comparison.sets:
        for arm in comparison.arms:
            for seeds in (None, *((seed,) for seed in comparison.seeds(arm.name))):
                own = [r for r in comparison.runs(arm.name) if seeds is None or r.plan.seed in seeds]
                row: dict[str, object] = {
                    "set": name,
                    "arm": arm.name,
                    "seed": seeds[0] if seeds else None,
                    "runs": len(own),
                    "prompts": comparison.prompts(name),
                }
                for kind in MEASURES:
                    after = comparison.after(name, kind, arm.name, seeds)
                    row |= _columns(kind, after)
                    row |= _columns(f"{kind}_change", comparison.change(name, kind, arm.name, seeds))
                    row[f"{kind}_spread"] = after.spread if after else None
                row["unratable"] = sum(r.after[name].unratable for r in own)
                row["unrated"] = sum(r.after[name].unrated for r in own)
                for place, when in enumerate(("first", "largest", "last")):
                    row[f"lambda_{when}"] = sum(r.mix[place] for r in own) / len(own)
                row["replies"], row["truncated"] = sum(r.replies for r in own), sum(r.truncated for r in own)
                for gap in GAPS:
                    row[gap] = max((v for r in own if (v := r.summary.get(gap)) is not None), default=None)
                row["minutes"] = sum(r.minutes for r in own)
                row["command"] = command(own[0]) if seeds else None
                rows.append(row)
    return pa.Table.from_pylist(rows, schema=_schema(list(rows[0])))


def _schema(names: list[str]) -> pa.Schema:
    words, whole = (
        {"set", "arm", "command"},
        {"seed", "runs", "prompts", "unratable", "unrated", "replies", "truncated"},
    )
    # Explicit types: Arrow would infer type null for an all-null column.
    kinds = [pa.string() if n in words else pa.int64() if n in whole else pa.float64() for n in names]
    return pa.schema(list(zip(names, kinds, strict=True)))


def _columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _interval(estimate: Estimate | None, digits: int, sign: bool = False) -> str:
    if estimate is None:
        return NONE
    shown = [
        format_signed(v, digits) if sign else f"{v:.{digits}f}" for v in (estimate.value, estimate.low, estimate.high)
    ]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _mean(counts: Sequence[int]) -> str:
    return f"{sum(counts) / len(counts):.1f}".removesuffix(".0")


def page(comparison: AblationResults, command: str, picture: str, left_out: Sequence[str] = ()) -> str:
    """Return the page.

    Args:
        comparison: Finished runs.
        command: Command that makes the runs and the page.
        picture: Path of the plot, relative to the page.
        left_out: Configuration keys that differ between this version of Duet and that of the runs.
    """
    judged, paper = judge_claims(comparison), paper_front(comparison)
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


def _head(comparison: AblationResults, command: str) -> list[str]:
    scale = comparison.config.reward
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
        f"- Scores go from {scale.score_min:g} to {scale.score_max:g}. A reply without a score through its own "
        "fault (truncated, malformed, no speech) counts as wrong in a share and as the lowest score in a mean; where a "
        "rater failed, the prompt is left out of the measure. The table counts both, a mean over the runs.",
        f"- Brackets: 95 % interval of a bootstrap over prompts ({RESAMPLES:,} resamples, the same prompts for all "
        "arms and seeds). It says how much the choice of prompts matters. How much the seed of the training matters is "
        "shown beside it, as the standard deviation over seeds or seed by seed.",
        "",
    ]


def _parts(comparison: AblationResults, kind: Metric) -> str:
    """Return the weights of a composite score, in parentheses."""
    parts = comparison.config.reward.composites.get(kind.score)
    return f" ({', '.join(f'{weight:g} × {rater}' for rater, weight in parts.items())})" if parts else ""


def _settings(comparison: AblationResults, left_out: Sequence[str]) -> list[str]:
    c = comparison.config
    combined = {"total": c.reward.weights, **c.reward.composites}
    rows = [
        ("model", f"{c.model.family}, {c.model.dtype}"),
        *batch_summary(c),
        ("learning rate", f"{c.learner.learning_rate:g}, {c.learner.warmup_steps} steps of warm-up"),
        ("sampler", f"temperature {c.rollout.temperature:g}, at most {c.rollout.max_new_tokens} tokens a reply"),
        (
            "preference",
            f"clip {c.algorithm.clip_eps_low:g}, KL {c.algorithm.kl_coef_text:g} text, {c.algorithm.kl_coef_speech:g} "
            "speech",
        ),
        (
            "λ where it is adaptive",
            f"at most {c.mix_ratio.max:g}; slope {c.mix_ratio.gate_slope:g}, threshold {c.mix_ratio.gate_threshold:g}",
        ),
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
        *table(("", ""), rows),
        *note,
    ]


def _distinct(comparison: AblationResults, key: str) -> str:
    """Return a mapping of summary.json as text, with every distinct value over the runs."""
    found: list[dict[str, Any]] = []
    for result in comparison.results:
        if (value := result.summary.get(key)) and value not in found:
            found.append(value)
    return "; or ".join(", ".join(f"{name} {value}" for name, value in one.items()) for one in found) or NONE


def _arms(comparison: AblationResults, picture: str) -> list[str]:
    return [
        "## Arms",
        "",
        f"On `{HEADLINE}`: after training, and under it the change since before.",
        *arms_table(comparison, HEADLINE),
        f"![IQ and EQ of the arms]({picture})",
        "",
        "Standard deviation over seeds; and of the training λ and minutes, means over the runs, and how many of all "
        "sampled replies were truncated.",
        *training_table(comparison),
    ]


def _claims(comparison: AblationResults, judged: Sequence[ClaimResult], paper: ParetoFront | None) -> list[str]:
    minutes = comparison.minutes(paper.arms) if paper else 0.0
    rows = claims_table(judged, paper, METHOD, minutes)
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


def _front(comparison: AblationResults, paper: ParetoFront | None) -> list[str]:
    every = pareto_front(comparison, [arm.name for arm in comparison.arms])
    rows = front_table(paper, every)
    if not rows:
        return []
    return [
        "## Pareto front",
        "",
        "An arm is on the front when no other is at least as high in both IQ and EQ and higher in one: by the means, "
        "and the share of resamples in which it is. The paper's arms are those of its table of IQ and EQ.",
        *rows,
    ]


def _other_set(comparison: AblationResults, name: str) -> list[str]:
    return [
        f"## On `{name}`",
        "",
        f"The same measures on the {comparison.prompts(name):,} prompts of another set.",
        *arms_table(comparison, name),
    ]


def _runs(comparison: AblationResults) -> list[str]:
    gaps = []
    for gap, what in zip(GAPS, ("on sampled tokens", "on the probe after a sync"), strict=True):
        values = [v for result in comparison.results if (v := result.summary.get(gap)) is not None]
        if values:
            gaps.append(f"{max(values):.1e} {what}")
    total = sum(result.minutes for result in comparison.results)
    lines = [f"{len(comparison.results)} runs, {total:.0f} minutes in all."]
    if gaps:
        lines[0] += f" Largest difference of a log-probability between sampler and learner: {', '.join(gaps)}."
    return ["## Runs", "", f"On `{HEADLINE}`.", *runs_table(comparison), *lines]
