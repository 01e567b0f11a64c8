"""Plots of a diagnosis."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.diagnosis.gradients import OVERALL
from evaluation.diagnosis.logprob_shift import LogprobShift
from evaluation.diagnosis.mix_ratio import Gates
from evaluation.diagnosis.page import Row
from observability.plots import BLUE, COLOURS, GREEN, INK, ORANGE, PINK, plt

BY_CHANNEL = {"text": BLUE, "speech": ORANGE, "boundary": GREEN, "end": PINK}
Rows = Sequence[Row]


def plot_gradients(rows: Rows, path: Path) -> None:
    """Plot norms by layer and channel above their cosine, one column per model and loss."""
    wholes = [(row["model"], row["loss"]) for row in rows if row["layer"] == OVERALL]
    figure, axes = plt.subplots(
        2,
        len(wholes),
        figsize=(3.6 * len(wholes) + 1, 5.6),
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=(3, 2),
        layout="constrained",
    )
    for (above, below), (model, loss) in zip(axes.T, wholes, strict=True):
        chosen = [r for r in rows if (r["model"], r["loss"]) == (model, loss) and r["layer"] != OVERALL]
        names = [str(row["layer"]) for row in chosen]
        for channel in ("text", "speech"):
            above.plot(names, _column(chosen, f"norm_{channel}"), "o-", color=BY_CHANNEL[channel], label=channel)
        below.axhline(0, color=INK, linewidth=0.8)
        below.plot(
            names,
            _column(chosen, "cosine"),
            "o-",
            color=PINK,
        )
        above.set(yscale="log", title=f"{loss} at {model}")
        below.set(ylim=(-1.05, 1.05))
        below.tick_params(axis="x", rotation=60)
    axes[0, 0].set_ylabel("gradient norm")
    axes[1, 0].set_ylabel("cosine of text and speech")
    axes[0, 0].legend(frameon=False, fontsize=9)
    _finish(figure, axes.flat, path)


def plot_shift(found: Sequence[LogprobShift], path: Path) -> None:
    """Plot histograms of Δlogp by channel, one panel per material. Log scale: most tokens barely move."""
    materials = list(dict.fromkeys(one.material for one in found))
    values = np.concatenate([one.values for one in found])
    low, high = np.quantile(values, [0.001, 0.999])
    bins = np.linspace(min(low, -1e-3), max(high, 1e-3), 81)
    figure, axes = plt.subplots(
        len(materials), 1, figsize=(8, 2.3 * len(materials) + 0.8), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, material in zip(axes.flat, materials, strict=True):
        for one in found:
            if one.material == material and len(one.values):
                # Outliers go to the outermost bins.
                inside = np.clip(one.values, bins[0], bins[-1])
                share = np.full(len(inside), 1.0 / len(inside))
                axis.hist(
                    inside,
                    bins=bins,
                    weights=share,
                    histtype="step",
                    linewidth=1.8,
                    color=BY_CHANNEL[one.channel],
                    label=f"{one.channel}, mean {one.values.mean():+.3f}",
                )
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set(yscale="log", ylabel="share of tokens", title=material)
        axis.legend(frameon=False, fontsize=9)
    axes[-1, 0].set_xlabel("Δlogp against the start model, nats")
    _finish(figure, axes.flat, path)


def plot_variance(rows: Rows, path: Path) -> None:
    """Plot mean within-group variance by rater over iterations, above the share of groups without variance."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 5.6), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    raters = list(dict.fromkeys(str(row["rater"]) for row in rows))
    for place, rater in enumerate(raters):
        colour = INK if rater == "total" else COLOURS[place % len(COLOURS)]
        chosen = [row for row in rows if row["rater"] == rater]
        for axis, name in ((above, "variance"), (below, "constant")):
            axis.plot(
                _column(chosen, "iteration"),
                _column(chosen, name),
                ".-",
                color=colour,
                linewidth=2.2 if rater == "total" else 1.3,
                label=rater.replace("_", " "),
            )
    above.set(ylabel="variance within groups", ylim=(0, None), title="How much the replies to one prompt differ")
    below.set(xlabel="iteration", ylabel="groups all alike", ylim=(-0.02, 1.02))
    above.legend(frameon=False, fontsize=9)
    _finish(figure, (above, below), path)


def plot_mixture(rows: Rows, found: Gates, path: Path) -> None:
    """Plot the parts of the change of λ_raw since the first quarter, above histograms of Var(R) and g over groups."""
    figure = plt.figure(figsize=(8, 6.2), layout="constrained")
    above, left, right = figure.subplot_mosaic(
        [["parts", "parts"], ["variance", "quality"]], height_ratios=(3, 2)
    ).values()
    x = _column(rows, "iteration")
    parts = {
        "from_quality": ("quality g", ORANGE),
        "from_information": ("information v", GREEN),
        "from_covariance": ("their covariance", PINK),
    }
    for name, (label, colour) in parts.items():
        above.plot(x, _column(rows, name), ".-", color=colour, linewidth=1.4, label=label)
    above.plot(x, sum(_column(rows, name) for name in parts), color=INK, linewidth=2.2, label="change of λ_raw")
    above.axhline(0, color=INK, linewidth=0.8)
    above.set(xlabel="iteration", ylabel="part in λ_raw", title="What moved λ_raw away from its first quarter")
    above.legend(frameon=False, fontsize=9, ncols=2)
    left.hist(found.variance, bins=30, color=BLUE)
    left.axvline(found.variance.mean(), color=INK, linewidth=1.2)
    left.set(xlabel=f"Var(R) within a group, mean {found.variance.mean():.2f}", ylabel="groups")
    right.hist(found.quality, bins=30, range=(0, 1), color=ORANGE)
    right.set(xlabel="quality gate g")
    _finish(figure, (above, left, right), path)


def _column(rows: Rows, name: str) -> np.ndarray:
    """Return a column as float64. Missing values become NaN and are not drawn."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def _finish(figure, axes, path: Path) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(colors=INK)
    figure.savefig(path, dpi=150)
    plt.close(figure)
