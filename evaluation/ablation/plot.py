"""Plot of a comparison: IQ against EQ."""

from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: cluster nodes have no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from evaluation.ablation.arms import ARMS
from evaluation.ablation.bootstrap import Estimate
from evaluation.ablation.claims import ParetoFront, paper_front
from evaluation.ablation.results import HEADLINE, AblationResults
from observability.plots import BLUE, GREEN, INK, ORANGE

BEFORE = "before training"
DISTANCES = (7, 18, 32, 50)
"""Candidate distances of a label from its point, in typographic points."""
CLEAR = 9
"""Clearance between a point and labels, in pixels."""
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
Point = tuple[Estimate, Estimate]


def plot(comparison: AblationResults, path: Path) -> None:
    """Plot IQ and EQ of every arm after training on the headline set, with the front of the paper's arms.

    Whiskers are 95 % intervals of the change from before training, paired by prompt. Intervals of the level would
    mostly show prompt difficulty, which all arms share.
    """
    points: dict[str, Point] = {}
    for name in [BEFORE, *(arm.name for arm in comparison.arms)]:
        iq, eq = (
            comparison.before(HEADLINE, kind) if name == BEFORE else comparison.after(HEADLINE, kind, name)
            for kind in ("iq", "eq")
        )
        if iq is not None and eq is not None:
            points[name] = (iq, eq)
    figure, axes = plt.subplots(figsize=(9, 6.4), layout="constrained")
    captions: set[str] = set()
    for name, (iq, eq) in points.items():
        colour, fill, caption = _style(name)
        axes.errorbar(
            iq.value,
            eq.value,
            xerr=_whiskers(comparison, "iq", name),
            yerr=_whiskers(comparison, "eq", name),
            fmt="o",
            color=colour,
            markerfacecolor=fill,
            markersize=7,
            ecolor=(*matplotlib.colors.to_rgb(colour), 0.35),
            elinewidth=1.2,
            label=None if caption in captions else caption,
        )
        captions.add(caption)
    front = paper_front(comparison)
    if front is not None:
        _draw_front(axes, front, points)
    axes.set(xlabel="IQ: right answers, %", ylabel="EQ: mean acoustic score", title=f"After training, on {HEADLINE}")
    axes.text(0.0, 1.0, "whiskers: 95 % of the change since before", transform=axes.transAxes, fontsize=8, color=INK)
    axes.margins(0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.tick_params(colors=INK)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)
    _label(figure, axes, points)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _whiskers(comparison: AblationResults, kind: str, name: str) -> list[list[float]] | None:
    """Return the lengths below and above the point. None before training or without an estimate."""
    change = None if name == BEFORE else comparison.change(HEADLINE, kind, name)
    return None if change is None else [[change.value - change.low], [change.high - change.value]]


def _style(name: str) -> tuple[str, str, str]:
    """Return colour, fill and caption of a point."""
    if name == BEFORE:
        return INK, INK, BEFORE
    if ARMS[name].in_table:
        return BLUE, BLUE, "arm of the paper's table"
    return ORANGE, "white", "other arm"


def _draw_front(axes: Axes, front: ParetoFront, points: dict[str, Point]) -> None:
    """Draw the front as a staircase. Arms below it are dominated."""
    chosen = [points[arm] for arm, on in zip(front.arms, front.on, strict=True) if on]
    corners = sorted((iq.value, eq.value) for iq, eq in chosen)
    x, y = [corner[0] for corner in corners], [corner[1] for corner in corners]
    axes.plot(x, y, drawstyle="steps-pre", color=GREEN, linewidth=1.4, linestyle="--", zorder=1)
    axes.plot(
        x,
        y,
        "o",
        color=GREEN,
        markerfacecolor="none",
        markersize=14,
        markeredgewidth=1.8,
        label="Pareto front of the paper's arms",
    )


def _label(figure: plt.Figure, axes: Axes, points: dict[str, Point]) -> None:
    """Label the points. Each label is placed with the least overlap."""
    figure.canvas.draw()  # text sizes require a drawn canvas
    figure.set_layout_engine("none")
    frame, pixels = axes.get_window_extent(), figure.dpi / 72
    dots = {name: axes.transData.transform((iq.value, eq.value)) for name, (iq, eq) in points.items()}
    taken = [Bbox.from_bounds(x - CLEAR, y - CLEAR, 2 * CLEAR, 2 * CLEAR) for x, y in dots.values()]
    for name, (x, y) in dots.items():
        text = axes.annotate(name, (x, y), xycoords="figure pixels", fontsize=9, color=_style(name)[0])
        size = text.get_window_extent()
        text.remove()

        def box(distance: float, right: int, up: int, x=x, y=y, size=size) -> Bbox:
            left = x + pixels * right * distance + {1: 0.0, 0: -0.5, -1: -1.0}[right] * size.width
            bottom = y + pixels * up * distance + {1: 0.0, 0: -0.5, -1: -1.0}[up] * size.height
            return Bbox.from_bounds(left, bottom, size.width, size.height)

        def cost(place: tuple[float, tuple[int, int]], box=box) -> float:
            own = box(place[0], *place[1])
            covered = sum(_overlap(own, other) for other in taken)
            return covered + own.width * own.height - _overlap(own, frame)

        distance, (right, up) = min(product(DISTANCES, DIRECTIONS), key=cost)
        axes.annotate(
            name,
            (points[name][0].value, points[name][1].value),
            xytext=(right * distance, up * distance),
            textcoords="offset points",
            ha={1: "left", 0: "center", -1: "right"}[right],
            va={1: "bottom", 0: "center", -1: "top"}[up],
            fontsize=9,
            color=_style(name)[0],
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # readable across whiskers
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6} if distance > DISTANCES[0] else None,
        )
        taken.append(box(distance, right, up).padded(2))


def _overlap(one: Bbox, other: Bbox) -> float:
    """Return the overlap in square pixels."""
    shared = Bbox.intersection(one, other)
    return shared.width * shared.height if shared is not None else 0.0
