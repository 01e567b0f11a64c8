"""The routing table: which score trains which tokens (method §6). Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from speech.vocabulary import SELECTIONS


@dataclass
class ScoreRoute:
    score: str = "total"
    """total, a combined score of `reward.scores`, or a rater's name."""
    channel: str = "text"
    """The tokens that this score trains: text, speech, all; format (boundaries and the end of the reply), words and
    codes (text and speech without those)."""
    weight: float = 1.0

    @property
    def label(self) -> str:
        """How the records call it."""
        return f"{self.score}→{self.channel}"


LARGEST_WEIGHT = 1e6
PRESETS: dict[str, tuple[ScoreRoute, ...]] = {
    "wavalign": (ScoreRoute(),),
    "full": (ScoreRoute(channel="all"),),
    "alpo": (
        ScoreRoute(score="format", channel="format"),
        ScoreRoute(score="semantic", channel="words"),
        ScoreRoute(score="acoustic", channel="codes"),
    ),
    "anchor_only": (),
}
"""Named tables: WavAlign's hybrid; the baseline that it argues against; ALPO (arXiv 2608.03054); no preference."""


def resolve_routes(given: Any, scores: Sequence[str]) -> list[ScoreRoute]:
    """The table that `preference.routes` means: a preset's name or rows of score, channel and weight.

    scores: the names that exist. Raises InputError naming what is wrong and what is allowed.
    """
    if isinstance(given, str):
        if given not in PRESETS:
            raise InputError(
                f"preference.routes: no preset is called {given!r}; presets: {', '.join(PRESETS)}, or a list such as "
                "[{score: total, channel: text, weight: 1.0}]"
            )
        routes = list(PRESETS[given])
    elif isinstance(given, list | tuple):
        routes = [row if isinstance(row, ScoreRoute) else _route(row) for row in given]
    else:
        raise InputError(f"preference.routes: {given!r} is neither a preset's name nor a list of routes")
    for route in routes:
        if route.score not in scores:
            raise InputError(
                f"preference.routes: nothing gives the score {route.score!r}; allowed: {', '.join(scores)}"
                + (" (reward.scores combines raters under a new name)" if isinstance(given, str) else "")
            )
        if route.channel not in SELECTIONS:
            raise InputError(
                f"preference.routes: channel {route.channel!r} is not possible; allowed: {', '.join(SELECTIONS)}"
            )
        if not 0.0 < route.weight < math.inf:
            raise InputError(f"preference.routes: weight {route.weight} of {route.label} must be a positive number")
    labels = [route.label for route in routes]
    if len(set(labels)) < len(labels):
        raise InputError(f"preference.routes: a route appears twice in {', '.join(labels)}")
    return routes


def _route(row: Any) -> ScoreRoute:
    if not isinstance(row, dict):
        raise InputError(f"preference.routes: {row!r} is not of the form {{score: total, channel: text, weight: 1.0}}")
    unknown = set(row) - {"score", "channel", "weight"}
    if unknown:
        raise InputError(f"preference.routes: unknown key {min(map(str, unknown))!r}; allowed: score, channel, weight")
    weight = row.get("weight", 1.0)
    if type(weight) not in (int, float) or abs(weight) > LARGEST_WEIGHT:
        raise InputError(f"preference.routes: weight {weight!r} is not a number up to {LARGEST_WEIGHT:g}")
    return ScoreRoute(
        score=str(row.get("score", "total")), channel=str(row.get("channel", "text")), weight=float(weight)
    )
