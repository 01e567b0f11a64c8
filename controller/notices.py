"""Events in words, for whoever watches a run. Pure."""

from collections.abc import Mapping

WORDS = {
    "lost": "{member} {reason}; its work goes to another",
    "starting": "{member} is being started",
    "joined": "{member} is at work",
    "left": "{member} has left",
    "no room": "{member} waits for a place: {reason}",
    "work failed": "{member} failed while {doing}: {error}; it is tried once more",
    "interrupted": "{member} was interrupted while {doing}: {reason}; it goes on when that is sent again",
    "mix": "λ from outside, from iteration {iteration} on: {value}",
    "resized": "{pool}: {before} → {after} members",
    "learner lost": "{reason}; the learner starts again from {where}",
    "learner back": "the learner is back after {seconds:.0f} s",
    "checkpoint failed": "{reason}; the run goes on and tries again",
    "step skipped": "iteration {iteration}: {reason}; the step was skipped",
    "judges forgotten": "what judges said before is lost, and they are asked again: {reason}",
    "stalled": "{summary}",
}
"""A sentence by kind of event, with its fields; other kinds are not for people."""
LONGEST = 300


def words(kind: str, fields: Mapping[str, object]) -> str | None:
    """The sentence for an event, None when there is none."""
    if kind not in WORDS:
        return None
    sentence = " ".join(WORDS[kind].format(**fields).split())
    return sentence if len(sentence) <= LONGEST else sentence[: LONGEST - 1] + "…"
