"""Plots of a run: λ with its gates, and the rewards."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa

matplotlib.use("Agg")  # before pyplot: cluster nodes have no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

INK, BLUE, ORANGE, GREEN, PINK = "#333333", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
"""Okabe-Ito palette, which is safe for colour-blind readers."""
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56B4E9", "#E69F00", "#F0E442", "#999999")
WINDOW = 5
"""Number of iterations in the moving average."""


def plot_lambda(table: pa.Table, path: Path) -> None:
    """Plot λ, raw and smoothed, above its two gates. `table` holds the rows of iterations.parquet."""
    x = _column(table, "iteration")
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 5.6), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    above.plot(x, _column(table, "lambda_raw"), color=BLUE, alpha=0.35, linewidth=1, label="λ before smoothing")
    above.plot(x, _column(table, "lambda"), color=BLUE, linewidth=2.2, label="λ used for the step")
    above.set(ylabel="λ", ylim=(0, None), title="λ, the weight of the preference loss")
    below.plot(
        x, _column(table, "gate_quality"), color=ORANGE, linewidth=1.8, label="quality g: a group has a good reply"
    )
    below.plot(
        x,
        _column(table, "gate_information"),
        color=GREEN,
        linewidth=1.8,
        label="information v: rewards of a group differ",
    )
    below.set(xlabel="iteration", ylabel="gate, 0 to 1", ylim=(0, 1.02))
    _finish(figure, (above, below), path)


def plot_scores(
    table: pa.Table,
    path: Path,
    evaluations: Mapping[str, Mapping[str, float | None]],
    names: Sequence[str],
    scale: tuple[float, float],
) -> None:
    """Plot the mean reward of each function over iterations: points and a moving average.

    Args:
        evaluations: held-out means by function, for "before" and "after"; drawn as rings at either end.
        names: rewards to plot.
        scale: minimum and maximum reward.
    """
    x = _column(table, "iteration")
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    for name, colour in zip(names, cycle(COLOURS), strict=False):
        y = _column(table, f"score_{name}")
        axes.plot(x, y, ".", color=colour, alpha=0.3, markersize=5)
        axes.plot(x, _moving_average(y), color=colour, linewidth=2, label=name.replace("_", " "))
        for when, place in (("before", 0.0), ("after", x[-1] + 1.0)):
            value = evaluations.get(when, {}).get(name)
            if value is not None:
                axes.plot(place, value, "o", color=colour, markerfacecolor="white", markersize=8, markeredgewidth=2)
    low, high = scale
    margin = (high - low) / 40
    axes.set(xlabel="iteration", ylabel=f"mean reward, {low:g} to {high:g}", ylim=(low - margin, high + margin))
    axes.set_title("Training rewards; rings: held-out prompts before and after")
    _finish(figure, (axes,), path)


def _column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64. Nulls become NaN, which is not drawn."""
    return np.asarray(table[name].to_pylist(), dtype=np.float64)


def _moving_average(values: np.ndarray) -> np.ndarray:
    """Return the mean of the last WINDOW values, NaN excluded."""
    averages = np.full(len(values), np.nan)
    for index in range(len(values)):
        recent = values[max(0, index - WINDOW + 1) : index + 1]
        if not np.isnan(recent).all():
            averages[index] = np.nanmean(recent)
    return averages


def _finish(figure: plt.Figure, axes: tuple[Axes, ...], path: Path) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.tick_params(colors=INK)
        axis.legend(frameon=False, loc="best", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
