"""One recorded reply as the listening room shows it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from controller.report.overview import plain
from speech.channels import Channel
from speech.records import Demonstration, Finish
from speech.vocabulary import Vocabulary

STRIP = {int(channel): channel.name.lower() for channel in Channel}
"""What a run of tokens is called, by the number of its channel."""
HEARD = "heard"
"""The detail in which a rater writes down the words that it heard."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Take:
    """A reply and what is known of it, in terms of JSON; and its tokens, to make its sound of."""

    shown: dict
    token_ids: np.ndarray
    """int32 [T]."""

    @property
    def total(self) -> float | None:
        return self.shown["total"]


def take(row: Mapping, stage: str, label: str, vocabulary: Vocabulary | None, place: str = "") -> Take:
    """A row of `controller.replies.REPLIES`.

    stage: before, between, after or training. label: the same in words. place: which of several.
    """
    details = {name: value for name, value in row["details"] if value}
    heard = details.get(HEARD)
    ids = np.asarray(row["token_ids"], dtype=np.int32)
    shown = {
        "stage": stage,
        "label": label,
        "place": place,
        "iteration": row["iteration"],
        "version": row["weight_version"],
        "text": row["text"],
        "heard": heard,
        "differs": None if heard is None else differs(row["text"], heard),
        "strip": strip(ids, np.asarray(row["channels"], dtype=np.int8), vocabulary),
        "total": plain(row["total"]),
        "scores": {name: plain(score) for name, score in row["scores"]},
        "missing": dict(row["missing"]),
        "reasons": {n.removesuffix("_reason"): v for n, v in details.items() if n.endswith("_reason")},
        "details": {n: v for n, v in details.items() if n not in ("text", HEARD) and not n.endswith("_reason")},
        "defect": row["defect"],
        "unfinished": row["finish"] != Finish.STOP,
        "use": row["use"],
        "worker": row["worker"],
    }
    return Take(shown=shown, token_ids=ids)


def demonstrated(one: Demonstration, vocabulary: Vocabulary) -> Take:
    """A demonstration, which nobody sampled and nobody rated."""
    ids = np.asarray(one.reply_ids, dtype=np.int32)
    shown = {"stage": "demonstration", "label": "Demonstration", "text": one.text, "total": None}
    return Take(shown=shown | {"strip": strip(ids, vocabulary.channels(ids), vocabulary)}, token_ids=ids)


def faulty(row: Mapping) -> bool:
    """Whether a reply is malformed or cut off."""
    return row["defect"] is not None or row["finish"] != Finish.STOP


def disagrees(row: Mapping) -> bool:
    """Whether a listener wrote down other words than the reply's text has."""
    heard = dict(row["details"]).get(HEARD)
    return heard is not None and differs(row["text"], heard)


def differs(said: str, heard: str) -> bool:
    return said.lower().split() != heard.lower().split()


def strip(ids: np.ndarray, channels: np.ndarray, vocabulary: Vocabulary | None) -> list[list]:
    """The tokens in order, as runs of one channel: [channel, tokens, the words if they are text]. Blanks, which only
    keep a stream's place, are left out."""
    if vocabulary is not None and vocabulary.blank is not None:
        ids, channels = ids[ids != vocabulary.blank], channels[ids != vocabulary.blank]
    edges = np.flatnonzero(np.diff(channels)) + 1
    runs = []
    for part, own in zip(np.split(ids, edges), np.split(channels, edges), strict=True):
        if len(own):
            kind = STRIP.get(int(own[0]), "foreign")
            said = vocabulary.text(part).strip() if vocabulary is not None and kind == "text" else ""
            runs.append([kind, len(own), said])
    return runs
