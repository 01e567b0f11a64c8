"""Δlogp: change of each token's log-probability from the start model (method §9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.diagnosis.page import Row, Section, Table
from evaluation.diagnosis.run_data import DiagnosisItem
from speech.vocabulary import Channel

TITLE = "Δlogp against the start model"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NAMES = {channel: channel.name.lower() for channel in Channel}
MOVED = 1e-4
"""Threshold in nats for a moved token. Rounding alone gives differences of up to a few 1e-5."""
TOP = 0.05
"""Share of tokens counted as having moved most. Their part in the total movement measures locality."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LogprobShift:
    """Δlogp of the tokens of one channel in one material."""

    material: str
    channel: str
    values: np.ndarray
    """float64 [n], log-probability now minus at the start, in nats."""
    forced: int
    """Number of excluded tokens. The structure allowed only one token, so no model can move them."""


def shifts(
    material: str,
    items: Sequence[DiagnosisItem],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    kinds: np.ndarray,
) -> list[LogprobShift]:
    """Return Δlogp by channel. before, after: float32 [T] per item. kinds: int8 [V], the `TokenKind` of every id."""
    channels = np.concatenate([item.channels for item in items])
    moved = np.concatenate([np.subtract(b, a, dtype=np.float64) for a, b in zip(before, after, strict=True)])
    free = np.concatenate([_free(item, kinds) for item in items])
    return [
        LogprobShift(
            material=material,
            channel=name,
            values=moved[(channels == channel) & free],
            forced=int(((channels == channel) & ~free).sum()),
        )
        for channel, name in NAMES.items()
    ]


def describe_shift(values: np.ndarray) -> Row:
    """Return size, spread and coherence of Δlogp [n]. All None without tokens."""
    names = [
        "mean",
        "std",
        "absolute",
        "moved",
        "same_direction",
        "coherence",
        "local",
        *(f"q{q:g}" for q in QUANTILES),
    ]
    if not len(values):
        return dict.fromkeys(names)
    size, deviation = np.abs(values), values.std()
    top = np.sort(size)[::-1][: max(1, round(TOP * len(values)))]
    ups, downs = int((values > MOVED).sum()), int((values < -MOVED).sum())
    return {
        "mean": float(values.mean()),
        "std": float(deviation),
        "absolute": float(size.mean()),
        "moved": (ups + downs) / len(values),
        "same_direction": max(ups, downs) / (ups + downs) if ups + downs else None,
        "coherence": float(abs(values.mean()) / deviation) if deviation > 0 else None,
        "local": float(top.sum() / size.sum()) if size.sum() > 0 else None,
        **{f"q{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
    }


def shift_section(name: str, found: Sequence[LogprobShift], lacks: Sequence[str]) -> Section:
    """Return the section on Δlogp.

    name: name of the later model, as in "at NAME". lacks: sentences on missing inputs.
    """
    if not any(len(one.values) for one in found):
        return Section(title=TITLE, findings=["Not measured.", *lacks])
    rows: list[Row] = [
        {"material": one.material, "channel": one.channel, "tokens": len(one.values), "forced": one.forced}
        | describe_shift(one.values)
        for one in found
        if len(one.values) or one.forced
    ]
    quantiles = {f"q{q:g}": f"{q:.0%}" for q in QUANTILES}
    columns = {
        "material": "tokens of",
        "channel": "channel",
        "tokens": "tokens",
        "forced": "forced",
        "mean": "mean",
        "std": "std",
        "absolute": "mean size",
        "moved": f"share that moved by {MOVED:g}",
        "same_direction": "of these in the majority direction",
        "coherence": "size of mean / std",
        "local": f"part of the {TOP:.0%} that moved most",
        **quantiles,
    }
    brief = {
        "material": "tokens of",
        "channel": "channel",
        "tokens": "tokens",
        "mean": "mean",
        "std": "std",
        "absolute": "size",
        "moved": "moved",
        "same_direction": "same way",
        "local": f"top {TOP:.0%}",
    }
    tokens: list[Row] = [
        {"material": one.material, "channel": one.channel, "shift": float(value)}
        for one in found
        for value in one.values
    ]
    return Section(
        title=TITLE,
        findings=[*_findings(name, found), *lacks],
        tables=[
            Table(
                name="shift",
                caption=f"Log-probability at {name} minus at the start, nats per token",
                columns=columns,
                rows=rows,
                brief=brief,
            ),
            Table(name="shift_tokens", caption="By token", columns={}, rows=tokens, brief={}),
        ],
        plots=["shift.png"],
        notes=[
            "Begin- and end-of-speech tokens (boundary) and the end of the reply (end) are separate from both "
            "channels. *Forced* tokens, where the structure allows one token only, have probability 1 under any model "
            "and are left out. Replies are scored at the sampler's temperature and over the tokens it could draw, "
            "demonstrations at temperature 1 over all tokens.",
            "The mean over a model's own samples is an estimate of a KL divergence: on replies of the last iteration "
            "it is biased upwards, on those of the first, which the start model sampled, downwards, independent of "
            "what was learnt. Demonstrations have no such bias.",
            f"Coherent movement has a large share in the majority direction and a mean that is large against the std. "
            f"Local movement has much of its whole size in the {TOP:.0%} of tokens that moved most.",
        ],
    )


def _findings(name: str, found: Sequence[LogprobShift]) -> list[str]:
    sentences = []
    for material in dict.fromkeys(one.material for one in found):
        sizes = {s.channel: float(np.abs(s.values).mean()) for s in found if s.material == material and len(s.values)}
        told = [f"{sizes[channel]:.3g} nats a {channel} token" for channel in ("text", "speech") if channel in sizes]
        if told:
            sentences.append(f"On {material}, {name} is away from the start by {' and '.join(told)} (mean size).")
        else:
            sentences.append(f"{material.capitalize()} contain no text or speech token to compare.")
    return sentences


def _free(item: DiagnosisItem, kinds: np.ndarray) -> np.ndarray:
    """Return bool [T]: tokens with an alternative."""
    allowed = item.passage.allowed
    if allowed is None:
        return np.ones(len(item.channels), dtype=bool)
    choices: Mapping[int, int] = {int(s): int(((kinds & s) != 0).sum()) for s in np.unique(allowed)}
    return np.array([choices[int(s)] > 1 for s in allowed], dtype=bool)
