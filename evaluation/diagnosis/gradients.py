"""Norms and cosine of the text and speech gradients (method §9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.diagnosis.gradient_geometry import GradientGeometry, measure_geometry
from evaluation.diagnosis.page import Row, Section, Table
from evaluation.diagnosis.run_data import DiagnosisItem, describe_run
from learner.policy import PolicyModel
from reward.scoring import advantages
from speech.vocabulary import select

TITLE = "Gradients of text and of speech"
CHANNELS = ("text", "speech")
HALVES = ("even", "odd")
"""Groups alternate between two halves. Agreement of the halves separates signal from chance."""
OVERALL = "overall"
MOSTLY_CHANCE = 1 / 3
"""Cosine r of the halves' gradients at which half of the total squared norm is common to both. The common share is
2r / (1 + r)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGradients:
    """Text and speech gradients of one loss at one model."""

    model: str
    """Model name, as in "at NAME"."""
    loss: str
    """"preference" or "anchor"."""
    material: str
    """Description of the data of the loss."""
    count: int
    """Number of replies or demonstrations."""
    geometry: GradientGeometry
    """Geometry of the losses "text even", "text odd", "speech even" and "speech odd"."""
    groups: int = 0
    """Number of groups with at least two totals. Preference only."""
    flat: int = 0
    """Number of these groups with equal totals, which have zero gradient."""

    def channels(self) -> GradientGeometry:
        """Return the geometry of the text and speech losses, with halves summed."""
        return self.geometry.summed({c: [f"{c} {half}" for half in HALVES] for c in CHANNELS})


Weights = dict[str, list[np.ndarray]]


def preference_weights(items: Sequence[DiagnosisItem], boundary: str) -> Weights:
    """Return token weights of the policy gradient at ratio one, L = −Σ w · logp (method §3).

    w = A / (selected tokens of the reply · replies of the group · groups), with A group-normalised from the recorded
    totals. Replies without a total and groups with fewer than two totals have zero weight. boundary: channel of
    boundary tokens.
    """
    groups = _scored(items)
    strength = np.zeros(len(items))
    for members in groups:
        strength[members] = advantages([items[i].total or 0.0 for i in members]) / (len(members) * len(groups))
    half = {i: place % 2 for place, members in enumerate(groups) for i in members}
    weights: Weights = _empty(items)
    for index, place in half.items():
        for channel in CHANNELS:
            mask = select(items[index].channels, channel, boundary=boundary)
            weights[f"{channel} {HALVES[place]}"][index] = mask * (strength[index] / max(1, mask.sum()))
    return weights


def anchor_weights(items: Sequence[DiagnosisItem], boundary: str, by_channel: Mapping[str, float]) -> Weights:
    """Return token weights of the anchor's text and speech parts, which add up to the anchor loss (method §4)."""
    weights = _empty(items)
    for index, item in enumerate(items):
        parts = {c: by_channel[c] * select(item.channels, c, boundary=boundary) for c in CHANNELS}
        whole = max(float(sum(part.sum() for part in parts.values())), 1e-8) * len(items)
        for channel, part in parts.items():
            weights[f"{channel} {HALVES[index % 2]}"][index] = part / whole
    return weights


def measure_preference(
    model: str, scorer: PolicyModel, items: Sequence[DiagnosisItem], boundary: str
) -> ChannelGradients:
    weights = preference_weights(items, boundary)
    groups = _scored(items)
    return ChannelGradients(
        model=model,
        loss="preference",
        material=describe_run(items),
        count=len(items),
        geometry=measure_geometry(scorer, [item.passage for item in items], weights),
        groups=len(groups),
        flat=sum(np.ptp([items[i].total for i in members]) == 0 for members in groups),
    )


def measure_anchor(
    model: str, scorer: PolicyModel, items: Sequence[DiagnosisItem], boundary: str, by_channel: Mapping[str, float]
) -> ChannelGradients:
    return ChannelGradients(
        model=model,
        loss="anchor",
        material=describe_run(items),
        count=len(items),
        geometry=measure_geometry(
            scorer, [item.passage for item in items], anchor_weights(items, boundary, by_channel)
        ),
    )


def layer_rows(measured: ChannelGradients) -> list[Row]:
    """Return one row per layer, after a row for the whole model."""
    found = measured.channels()
    table = []
    for layer in (None, *found.layers):
        text, speech = (found.norm(channel, layer) for channel in CHANNELS)
        table.append(
            {
                "model": measured.model,
                "loss": measured.loss,
                "material": measured.material,
                "count": measured.count,
                "layer": layer or OVERALL,
                "norm_text": text,
                "norm_speech": speech,
                "ratio": text / speech if speech > 0 else None,
                "cosine": found.cosine(*CHANNELS, layer),
                **_beyond_chance(measured.geometry, layer),
            }
        )
    return table


def gradient_section(found: Sequence[ChannelGradients], remarks: Sequence[str]) -> Section:
    """Return the section on gradients. remarks: sentences on the data of the gradients and on missing inputs."""
    if not found:
        return Section(title=TITLE, findings=["Not measured.", *remarks])
    every = [row for measured in found for row in layer_rows(measured)]
    columns = {
        "model": "at",
        "loss": "loss",
        "layer": "layer",
        "norm_text": "norm, text",
        "norm_speech": "norm, speech",
        "ratio": "text / speech",
        "cosine": "cosine",
        "repeat_text": "halves agree, text",
        "repeat_speech": "halves agree, speech",
        "ratio_signal": "text / speech beyond chance",
        "cosine_signal": "cosine beyond chance",
    }
    overall = [row for row in every if row["layer"] == OVERALL]
    brief = {
        "model": "at",
        "loss": "loss",
        "norm_text": "text",
        "norm_speech": "speech",
        "ratio": "ratio",
        "cosine": "cosine",
        "repeat_text": "halves, text",
        "repeat_speech": "halves, speech",
    }
    return Section(
        title=TITLE,
        findings=[*(_finding(measured, row) for measured, row in zip(found, overall, strict=True)), *remarks],
        tables=[
            Table(name="gradients", caption="Whole model", columns=columns, rows=every, shown=overall, brief=brief),
            Table(
                name="gradients",
                caption="By layer",
                columns=columns,
                rows=every,
                brief={},
                shown=[row for row in every if row["layer"] != OVERALL],
            ),
        ],
        plots=["gradients.png"],
        notes=[
            "Two backward passes over the same replies: the loss on text tokens only, then on speech tokens only. "
            "Preference: policy gradient at ratio one, advantages from the recorded totals, mean over a "
            "reply's selected tokens, over replies, over groups; without KL. Each channel is averaged over its own "
            "tokens, so the ratio does not grow with the number of speech tokens.",
            "Anchor: the demonstrations' likelihood, its text part and its speech part; the two add up to the anchor "
            "loss, whose mean runs over the tokens of both.",
            "A gradient over a few hundred replies is partly chance. *Halves agree* is the cosine between the "
            "gradients of the even and of the odd groups: near 0, the norm is mostly chance. *Beyond chance* replaces "
            "squared norms and products by those across the halves, to which independent chance adds zero on average; "
            "a dash where the halves do not agree at all, and a cosine outside ±1 where they hardly do.",
            "Where sampling is held to a structure that never offers text and speech at once, their tokens use "
            "different rows of the output layer: for the preference the cosine there is 0 by construction.",
        ],
    )


def _finding(measured: ChannelGradients, row: Row) -> str:
    where = f"{measured.loss.capitalize()} at {measured.model}, {measured.count} {measured.material}"
    if measured.loss == "preference":
        where += f", {measured.groups} groups with two or more totals"
        where += f" ({measured.flat} of them with equal totals)" if measured.flat else ""
    ratio, cosine = row["ratio"], row["cosine"]
    if ratio is None or cosine is None:
        zero = [channel for channel in CHANNELS if not row[f"norm_{channel}"]]
        return f"{where}: ratio and cosine are undefined, because the gradient of {' and of '.join(zero)} is zero."
    told = f"{where}: the gradient of text is {ratio:.3g} times that of speech, cosine {cosine:+.3f}"
    repeats = {channel: row[f"repeat_{channel}"] for channel in CHANNELS}
    chance = [channel for channel, repeat in repeats.items() if repeat is not None and repeat < MOSTLY_CHANCE]
    if chance:
        told += f"; mostly chance for {' and '.join(chance)}, as the halves of the data show"
    return f"{told}."


def _beyond_chance(geometry: GradientGeometry, layer: str | None) -> Row:
    """Return agreement of the halves, and ratio and cosine from products across halves."""
    common = {
        (one, other): geometry.product(f"{one} even", f"{other} odd", layer)
        + geometry.product(f"{one} odd", f"{other} even", layer)
        for one in CHANNELS
        for other in CHANNELS
    }
    text, speech = common["text", "text"], common["speech", "speech"]
    both = text > 0 and speech > 0
    return {
        "repeat_text": geometry.cosine("text even", "text odd", layer),
        "repeat_speech": geometry.cosine("speech even", "speech odd", layer),
        "ratio_signal": float(np.sqrt(text / speech)) if both else None,
        "cosine_signal": float(common["text", "speech"] / np.sqrt(text * speech)) if both else None,
    }


def _scored(items: Sequence[DiagnosisItem]) -> list[list[int]]:
    """Return indices of replies with a total, by group, for groups with at least two."""
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        if item.total is not None:
            groups.setdefault(item.group, []).append(index)
    return [members for members in groups.values() if len(members) >= 2]


def _empty(items: Sequence[DiagnosisItem]) -> Weights:
    return {f"{c} {half}": [np.zeros(len(item.channels)) for item in items] for c in CHANNELS for half in HALVES}
