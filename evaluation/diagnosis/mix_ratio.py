"""Decomposition of λ into its two gates, and the λ that the score variance allows (method §2, §9)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from controller.mix_ratio import MixRatioConfig, gates
from evaluation.diagnosis.page import Row, Section, Table
from evaluation.diagnosis.run_data import ScoredGroup

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PAPER_MIX = (0.35, 0.55)
"""Range in which the paper's λ settles (method §9)."""
PAPER_VARIANCE = 1.066
"""Variance of human scores reported in the paper."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gates:
    """Gates g and v, and Var(R), of n groups, float64 [n] each."""

    iteration: np.ndarray
    quality: np.ndarray
    information: np.ndarray
    variance: np.ndarray

    def within(self, iterations: Sequence[int]) -> "Gates":
        kept = np.isin(self.iteration, iterations)
        return Gates(
            iteration=self.iteration[kept],
            quality=self.quality[kept],
            information=self.information[kept],
            variance=self.variance[kept],
        )


@dataclass(frozen=True, kw_only=True)
class MixRatioParts:
    """Additive decomposition of a change of λ_raw = λ_max · mean(g · v)."""

    quality: float
    """Part from the change of mean g."""
    information: float
    """Part from the change of mean v."""
    together: float
    """Part from the change of cov(g, v) over groups."""

    @property
    def change(self) -> float:
        return self.quality + self.information + self.together


def measure_gates(groups: Sequence[ScoredGroup], settings: MixRatioConfig) -> Gates:
    """Compute the gates of every group with at least two totals."""
    scored = [(group.iteration, total) for group in groups if len(total := group.present("total")) >= 2]
    opened = [gates(total.tolist(), settings) for _, total in scored]
    return Gates(
        iteration=np.array([number for number, _ in scored], dtype=np.int64),
        quality=np.array([g for g, _ in opened]),
        information=np.array([v for _, v in opened]),
        variance=np.array([np.var(total) for _, total in scored]),
    )


def decompose(before: Gates, after: Gates, largest: float) -> MixRatioParts:
    """Decompose λ_raw(after) − λ_raw(before) into parts from g, v and their covariance.

    mean(g·v) = mean(g) · mean(v) + cov(g, v). Shapley's rule splits the change of the product: each factor's change
    times the average of the other. The change of the covariance is separate. The three parts add up exactly.
    """
    g0, g1 = before.quality.mean(), after.quality.mean()
    v0, v1 = before.information.mean(), after.information.mean()

    def covariance(part: Gates) -> float:
        return (part.quality * part.information).mean() - part.quality.mean() * part.information.mean()

    return MixRatioParts(
        quality=float(largest * (g1 - g0) * (v0 + v1) / 2.0),
        information=float(largest * (v1 - v0) * (g0 + g1) / 2.0),
        together=float(largest * (covariance(after) - covariance(before))),
    )


def gate_ends(iterations: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the first and the last quarter of the iterations, at least one each."""
    count = max(1, len(iterations) // 4)
    return list(iterations[:count]), list(iterations[-count:])


def mixture_section(records: pa.Table | None, found: Gates, settings: MixRatioConfig) -> Section:
    """Return the section on λ. records: iterations.parquet, or None if missing."""
    title = "λ and what it is made of"
    iterations = sorted(set(found.iteration.tolist()))
    if not iterations:
        return Section(title=title, findings=["No group has two totals: λ was not measured."])
    rows = _by_iteration(records, found, iterations, settings)
    variance, quality, raw = found.variance.mean(), found.quality.mean(), _raw(found, settings)
    opened = settings.max * found.information.mean()
    top, low, high = settings.max_variance, *PAPER_MIX
    reach = settings.max / top
    findings = [
        f"Var(R) is {variance:.3f} on average over {len(found.variance):,} groups. With the quality gate open (g = 1) "
        f"that gives a λ of {opened:.3f}; with the measured g (mean {quality:.3f}) it gives {raw:.3f}.",
        f"A λ of {low} to {high}, where the paper's settles, needs Var(R) of {low / reach:.2f} to {high / reach:.2f} "
        f"with the gate open; the human variance of {PAPER_VARIANCE} that it reports gives at most "
        f"{PAPER_VARIANCE * reach:.2f}. This run reaches {low} "
        f"in {np.mean(settings.max * found.quality * found.information >= low):.0%} of its groups.",
    ]
    tables = [_distribution(found, settings)]
    if len(iterations) > 1:
        first, last = (found.within(part) for part in gate_ends(iterations))
        parts = decompose(first, last, settings.max)
        start, end = _raw(first, settings), _raw(last, settings)
        names = [f"{p[0]}" if len(p) == 1 else f"{p[0]} to {p[-1]}" for p in gate_ends(iterations)]
        findings.append(
            f"From iterations {names[0]} to iterations {names[1]}, λ_raw went from {start:.3f} to {end:.3f} "
            f"({parts.change:+.3f}): {parts.quality:+.3f} from the quality gate g, {parts.information:+.3f} from the "
            f"information gate v, {parts.together:+.3f} from their covariance over groups."
        )
        tables.insert(0, _change(first, last, parts, settings))
    else:
        findings.append("A change of λ_raw needs at least two iterations.")
    if (gap := _gap(rows)) is not None:
        findings.append(
            f"λ_raw recomputed from the recorded totals differs from the recorded one by at most {gap:.1g}."
        )
    else:
        findings.append("No recorded λ_raw to compare with.")
    tables.append(Table(name="lambda", caption="By iteration", columns={}, rows=rows, brief={}))
    by_group: list[Row] = [
        {"iteration": int(i), "quality": float(g), "information": float(v), "variance": float(r)}
        for i, g, v, r in zip(found.iteration, found.quality, found.information, found.variance, strict=True)
    ]
    tables.append(Table(name="gates", caption="By group", columns={}, rows=by_group, brief={}))
    notes = [
        "g = sigmoid(k · (max R − threshold)), v = clip(Var R / largest variance, 0, 1), λ_raw = λ_max · mean(g · v).",
        "The change of λ_raw is that of λ_max · [mean(g) · mean(v) + cov(g, v)]. Each gate's part is its change times "
        "the average of the other at both ends (Shapley's rule for a product); the three parts add up exactly.",
    ]
    return Section(title=title, findings=findings, tables=tables, plots=["lambda_parts.png"], notes=notes)


def _raw(found: Gates, settings: MixRatioConfig) -> float:
    return float(settings.max * (found.quality * found.information).mean())


def _by_iteration(
    records: pa.Table | None, found: Gates, iterations: Sequence[int], settings: MixRatioConfig
) -> list[Row]:
    recorded = {row["iteration"]: row for row in records.to_pylist()} if records is not None else {}
    baseline = found.within(gate_ends(iterations)[0])
    rows = []
    for number in iterations:
        here = found.within([number])
        parts = decompose(baseline, here, settings.max)
        row = recorded.get(number, {})
        rows.append(
            {
                "iteration": number,
                "lambda": row.get("lambda"),
                "lambda_raw": row.get("lambda_raw"),
                "gate_quality": row.get("gate_quality"),
                "gate_information": row.get("gate_information"),
                "lambda_raw_again": _raw(here, settings),
                "from_quality": parts.quality,
                "from_information": parts.information,
                "from_covariance": parts.together,
                "variance": float(here.variance.mean()),
                "groups": len(here.variance),
            }
        )
    return rows


def _gap(rows: Sequence[Row]) -> float | None:
    gaps = [abs(row["lambda_raw"] - row["lambda_raw_again"]) for row in rows if row["lambda_raw"] is not None]
    return max(gaps) if gaps else None


def _change(first: Gates, last: Gates, parts: MixRatioParts, settings: MixRatioConfig) -> Table:
    def row(name: str, before: float, after: float, part: float | None) -> Row:
        return {"what": name, "before": float(before), "after": float(after), "part": part}

    def covariance(part: Gates) -> float:
        return float((part.quality * part.information).mean() - part.quality.mean() * part.information.mean())

    rows = [
        row("mean g, quality", first.quality.mean(), last.quality.mean(), parts.quality),
        row("mean v, information", first.information.mean(), last.information.mean(), parts.information),
        row("cov(g, v) over groups", covariance(first), covariance(last), parts.together),
        row("λ_raw", _raw(first, settings), _raw(last, settings), parts.change),
    ]
    columns = {"what": "", "before": "first quarter", "after": "last quarter", "part": "part in the change of λ_raw"}
    return Table(name="lambda_change", caption="The change of λ_raw over the run", columns=columns, rows=rows)


def _distribution(found: Gates, settings: MixRatioConfig) -> Table:
    quantities = {
        "Var(R)": found.variance,
        "v": found.information,
        "g": found.quality,
        "λ_max · g · v": settings.max * found.quality * found.information,
    }
    columns = {"what": "", "mean": "mean"} | {f"q{q:g}": f"{q:.0%}" for q in QUANTILES}
    rows: list[Row] = [
        {"what": name, "mean": float(values.mean())} | {f"q{q:g}": float(np.quantile(values, q)) for q in QUANTILES}
        for name, values in quantities.items()
    ]
    return Table(name="gate_quantiles", caption="Over groups: mean and quantiles", columns=columns, rows=rows)
