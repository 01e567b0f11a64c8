"""Grade benchmark replies in two channels, by program or by judge.

The **text** channel scores the words of the text stream alone, without audio. The **speech** channel scores the
audio: an ASR transcript replaces the text, for programs and judges. A judge also gets the audio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evaluation.benchmarks.answer_extraction import AnswerVerdict, score_by_program, unusable
from evaluation.benchmarks.items import BenchmarkItem, TaskKind
from reward.server import HEARD, reply_defect
from reward.types import MissingScore, Scorecard, SpokenReply
from speech.audio import Waveform
from speech.types import Finish, Prompt, Reply

Rate = Callable[[Sequence[SpokenReply], Sequence[str]], list[Scorecard]]
"""Return one scorecard per reply, from the named raters only."""
NO_REPLY = MissingScore("no reply", fault="rater")
NO_JUDGE = MissingScore("no judge", fault="rater")
NO_RECOGNISER = MissingScore("no recogniser", fault="rater")
NO_SOUND = MissingScore("no speech in the reply")
CHANNELS = ("text", "speech")


@dataclass(frozen=True, kw_only=True)
class Graders:
    """Raters for scores that a program cannot give. Each is a rater name; empty: none."""

    rate: Rate
    judge: str = ""
    """Rater for JUDGED and STYLE."""
    answers: str = ""
    """Rater for ANSWER: a score above the middle of the scale counts as correct. Empty: a program searches for the
    references."""
    hears: str = ""
    """ASR rater that puts its transcript in the details, under `reward.server.HEARD`."""
    lowest: float = 1.0
    highest: float = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class AnsweredItem:
    """Item with its reply, or with the reason for a missing reply."""

    item: BenchmarkItem
    spoken: SpokenReply | None
    missing: MissingScore = NO_REPLY


@dataclass(frozen=True, kw_only=True, eq=False)
class GradedItem:
    """Item with its transcript and verdicts."""

    item: BenchmarkItem
    text: str | None
    """Reply text. None without a reply."""
    heard: str | None
    """ASR transcript. None without a recogniser or a usable reply."""
    finish: str
    defect: str | None
    seconds: float
    """Audio duration in seconds."""
    verdicts: dict[str, AnswerVerdict] = field(default_factory=dict)
    """Verdicts by channel. A channel that does not apply to the item's kind has no entry."""


def spoken_elsewhere(item: BenchmarkItem, text: str, waveform: Waveform | None) -> SpokenReply:
    """Return a complete reply that was generated outside Duet."""
    nothing = np.zeros(0, dtype=np.int32)
    reply = Reply(
        prompt_id=item.name,
        index=0,
        token_ids=nothing,
        channels=nothing.astype(np.int8),
        logps=nothing.astype(np.float32),
        weight_version=0,
        finish=Finish.STOP,
        defect=None,
    )
    return SpokenReply(prompt=as_prompt(item, nothing), reply=reply, text=text, waveform=waveform)


def as_prompt(item: BenchmarkItem, token_ids: np.ndarray) -> Prompt:
    """Return the prompt passed to raters. token_ids: int32 [P]."""
    return Prompt(id=item.name, token_ids=token_ids, text=item.text, facts=item.facts())


def grade(answered: Sequence[AnsweredItem], panel: Graders) -> list[GradedItem]:
    """Grade replies in both channels. Return results in input order."""
    hearing = _hear(answered, panel)
    verdicts: list[dict[str, AnswerVerdict]] = [{} for _ in answered]
    judged: dict[str, list[tuple[int, str, SpokenReply]]] = {}
    """Position, channel and reply to score, by rater."""
    for place, (one, heard) in enumerate(zip(answered, hearing, strict=True)):
        for channel in CHANNELS if one.item.kind is not TaskKind.STYLE else CHANNELS[1:]:
            found = _without_a_judge(one, channel, heard, panel)
            if isinstance(found, AnswerVerdict):
                verdicts[place][channel] = found
            else:
                judged.setdefault(_rater(one.item, panel), []).append((place, channel, found))
    for name, questions in judged.items():
        cards = panel.rate([spoken for _, _, spoken in questions], [name])
        for (place, channel, _), card in zip(questions, cards, strict=True):
            verdicts[place][channel] = _of_card(answered[place].item, card, name, panel)
    return [
        GradedItem(
            item=one.item,
            text=one.spoken.text if one.spoken else None,
            heard=heard if isinstance(heard, str) else None,
            finish=str(one.spoken.reply.finish) if one.spoken else "",
            defect=one.spoken.reply.defect if one.spoken else None,
            seconds=one.spoken.waveform.seconds if one.spoken and one.spoken.waveform else 0.0,
            verdicts=by_channel,
        )
        for one, heard, by_channel in zip(answered, hearing, verdicts, strict=True)
    ]


def _hear(answered: Sequence[AnsweredItem], panel: Graders) -> list[str | MissingScore]:
    """Return the transcript of each reply, "" for one without audio, or the reason for a missing transcript."""
    heard: list[str | MissingScore] = [one.missing for one in answered]
    listened: list[tuple[int, SpokenReply]] = []
    for place, one in enumerate(answered):
        if one.spoken is None:
            continue
        if not panel.hears:
            heard[place] = NO_RECOGNISER
        elif (reason := reply_defect(one.spoken.reply)) is not None:
            heard[place] = reason
        elif one.spoken.waveform is None:
            heard[place] = ""
        else:
            listened.append((place, one.spoken))
    if listened:
        for (place, _), card in zip(
            listened, panel.rate([spoken for _, spoken in listened], [panel.hears]), strict=True
        ):
            score = card.scores[panel.hears]
            words = card.details.get(HEARD)
            if words is None:
                unheard = MissingScore(f"{panel.hears} notes no words", fault="rater")
                heard[place] = score if isinstance(score, MissingScore) else unheard
            else:
                heard[place] = words
    return heard


def _rater(item: BenchmarkItem, panel: Graders) -> str:
    return panel.answers if item.kind is TaskKind.ANSWER else panel.judge


def _without_a_judge(
    one: AnsweredItem, channel: str, heard: str | MissingScore, panel: Graders
) -> AnswerVerdict | SpokenReply:
    """Return a verdict if no judge is needed, otherwise the reply to send to the rater."""
    item, spoken = one.item, one.spoken
    if spoken is None:
        return unusable(item, one.missing)
    if (reason := reply_defect(spoken.reply)) is not None:
        return unusable(item, reason)
    by_judge = item.kind in (TaskKind.JUDGED, TaskKind.STYLE) or (item.kind is TaskKind.ANSWER and panel.answers)
    if by_judge and not _rater(item, panel):
        return unusable(item, NO_JUDGE)
    if item.kind is TaskKind.STYLE:  # the judge scores the audio and also gets the text
        return unusable(item, NO_SOUND) if spoken.waveform is None else spoken
    if channel == "text":
        return replace(spoken, waveform=None) if by_judge else score_by_program(item, spoken.text)
    if isinstance(heard, MissingScore):
        return unusable(item, heard)
    if by_judge:
        return unusable(item, NO_SOUND) if spoken.waveform is None else replace(spoken, text=heard)
    return score_by_program(item, heard)


def _of_card(item: BenchmarkItem, card: Scorecard, name: str, panel: Graders) -> AnswerVerdict:
    score = card.scores[name]
    reason = card.details.get(f"{name}_reason", "")
    if isinstance(score, MissingScore):
        return unusable(item, score)
    if not panel.lowest <= score <= panel.highest:
        return AnswerVerdict(
            score=MissingScore("score outside the scale", fault="rater"), reason=f"{name} gave {score:g}"
        )
    if item.kind is TaskKind.ANSWER:
        score = float(score > (panel.lowest + panel.highest) / 2)
    return AnswerVerdict(score=score, reason=reason)
