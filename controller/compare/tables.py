"""The tables of the page, as lines of Markdown, and comparison.parquet."""

import shlex
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path

import pyarrow as pa

from controller.compare.bootstrap import Estimate
from controller.compare.measures import MEASURES
from controller.compare.results import HEADLINE, Comparison, Result
from controller.compare.verdicts import Front, Judged
from controller.outcome import number, signed

NONE = "–"
GAPS = ("logp_gap_largest", "probe_gap_largest")
"""Of summary.json: sampler against learner on sampled tokens, and on the probe after a sync."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table between empty lines."""
    lines = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines), ""]


def short(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    path, here = path.absolute(), Path.cwd()
    return relpath(path, here) if path.is_relative_to(here) else str(path)


def command(result: Result) -> str:
    """The command that makes a run."""
    arguments = list(result.plan.arguments)
    arguments[1] = short(Path(arguments[1]))
    return shlex.join(["duet", "train", *arguments])


def arms_table(comparison: Comparison, name: str) -> list[str]:
    """A line an arm on one evaluation set: every measure after training, and its change."""
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


def training_table(comparison: Comparison) -> list[str]:
    """A line an arm: how much the seeds differ on the headline set, and what happened in training."""
    head = ["arm", "IQ ± over seeds", "EQ ± over seeds", "λ first", "largest", "last", "truncated replies", "minutes"]
    rows = []
    for arm in comparison.arms:
        own = comparison.runs(arm.name)
        spreads = []
        for kind in ("iq", "eq"):
            after = comparison.after(HEADLINE, kind, arm.name)
            spreads.append(number(after.spread if after else None, f".{MEASURES[kind].digits}f"))
        mix = [f"{sum(r.mix[place] for r in own) / len(own):.3f}" for place in range(3)]
        truncated = f"{sum(r.truncated for r in own):,} of {sum(r.replies for r in own):,}"
        minutes = f"{sum(r.minutes for r in own) / len(own):.1f}"
        rows.append([arm.name, *spreads, *mix, truncated, minutes])
    return table(head, rows)


def claims_table(judged: Sequence[Judged], front: Front | None, method: str, minutes: float) -> list[str]:
    """A line a claim: the source's numbers, ours, the difference, the verdict. minutes: of the front's runs."""
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
                ", ".join(signed(value, measure.digits) for value in one.difference.by_seed),
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


def front_table(paper: Front | None, every: Front | None) -> list[str]:
    """A line an arm: whether it is on the front among the paper's arms and among all."""
    rows = []
    for arm in every.arms if every else ():
        cells = []
        for front in (paper, every):
            if front and arm in front.arms:
                place = front.arms.index(arm)
                cells.append(f"{'yes' if front.on[place] else 'no'}, {100 * front.share[place]:.1f} %")
            else:
                cells.append(NONE)
        rows.append([arm, *cells])
    return table(["arm", "on the front of the paper's arms", "on the front of all arms"], rows) if rows else []


def runs_table(comparison: Comparison) -> list[str]:
    """A line a run, with its command."""
    captions = [f"{MEASURES[kind].caption} before → after" for kind in ("iq", "eq")]
    rows = []
    for result in sorted(comparison.results, key=lambda r: r.plan.seed):
        moves = []
        for kind in ("iq", "eq"):
            digits = MEASURES[kind].digits
            pair = (one[HEADLINE].mean(kind) for one in (result.before, result.after))
            moves.append(" → ".join(number(value, f".{digits}f") for value in pair))
        gaps = [number(result.summary.get(gap), ".1e") for gap in GAPS]
        rows.append([result.plan.name, f"`{command(result)}`", *moves, *gaps, f"{result.minutes:.1f}"])
    return table(["run", "command", *captions, *GAPS, "minutes"], rows)


def records(comparison: Comparison) -> pa.Table:
    """comparison.parquet: a row an arm (seed null) and a row a run, for each evaluation set.

    Of each measure NAME the columns NAME (after), NAME_low, NAME_high, NAME_change, NAME_change_low, NAME_change_high
    and, for arms, NAME_spread (standard deviation over seeds). Shares are percentages.
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
    # Named and not guessed: a column that is all null is still of numbers.
    kinds = [pa.string() if n in words else pa.int64() if n in whole else pa.float64() for n in names]
    return pa.schema(list(zip(names, kinds, strict=True)))


def _columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _interval(estimate: Estimate | None, digits: int, sign: bool = False) -> str:
    if estimate is None:
        return NONE
    shown = [signed(v, digits) if sign else f"{v:.{digits}f}" for v in (estimate.value, estimate.low, estimate.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _mean(counts: Sequence[int]) -> str:
    return f"{sum(counts) / len(counts):.1f}".removesuffix(".0")
