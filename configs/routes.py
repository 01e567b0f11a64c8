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
    """total, a composite of `reward.composites`, or the name of a reward function."""
    channel: str = "text"
    """Tokens that this score trains: text, speech, all; format (boundaries and the end of the reply), words and
    codes (text and speech without those)."""
    weight: float = 1.0

    @property
    def label(self) -> str:
        """Return its name in the records."""
        return f"{self.score}→{self.channel}"


MAX_WEIGHT = 1e6

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
    """Return the routes of `algorithm.score_routing`: a preset's name, or rows of score, channel and weight.

    scores: the names that exist. Raises InputError.
    """
    if isinstance(given, str):
        if given not in PRESETS:
            raise InputError(
                f"algorithm.score_routing: no preset is called {given!r}; presets: {', '.join(PRESETS)}, or a list "
                "such as [{score: total, channel: text, weight: 1.0}]"
            )
        routes = list(PRESETS[given])
    elif isinstance(given, list | tuple):
        routes = [row if isinstance(row, ScoreRoute) else _route(row) for row in given]
    else:
        raise InputError(f"algorithm.score_routing: {given!r} is neither a preset's name nor a list of routes")
    for route in routes:
        if route.score not in scores:
            raise InputError(
                f"algorithm.score_routing: nothing gives the score {route.score!r}; allowed: {', '.join(scores)}"
                + (" (reward.composites combines scores under a new name)" if isinstance(given, str) else "")
            )
        if route.channel not in SELECTIONS:
            raise InputError(
                f"algorithm.score_routing: channel {route.channel!r} is not allowed; choose from: "
                f"{', '.join(SELECTIONS)}"
            )
        if not 0.0 < route.weight < math.inf:
            raise InputError(
                f"algorithm.score_routing: weight {route.weight} of {route.label} must be a positive number"
            )
    labels = [route.label for route in routes]
    if len(set(labels)) < len(labels):
        raise InputError(f"algorithm.score_routing: a route appears twice in {', '.join(labels)}")
    return routes


def _route(row: Any) -> ScoreRoute:
    if not isinstance(row, dict):
        raise InputError(
            f"algorithm.score_routing: {row!r} is not of the form {{score: total, channel: text, weight: 1.0}}"
        )
    unknown = set(row) - {"score", "channel", "weight"}
    if unknown:
        raise InputError(
            f"algorithm.score_routing: unknown key {min(map(str, unknown))!r}; allowed: score, channel, weight"
        )
    weight = row.get("weight", 1.0)
    if type(weight) not in (int, float) or abs(weight) > MAX_WEIGHT:
        raise InputError(f"algorithm.score_routing: weight {weight!r} is not a number up to {MAX_WEIGHT:g}")
    return ScoreRoute(
        score=str(row.get("score", "total")), channel=str(row.get("channel", "text")), weight=float(weight)
    )
