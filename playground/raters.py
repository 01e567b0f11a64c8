"""The playground's raters, each on 1..5: is the answer right, is it said clearly, is it in the caller's manner, and is
the right answer what a listener hears.

None of them invents a number: without speech, or without a voiced sound to measure, the score is Missing. Raters
of one process share one recogniser and remember the last sound, so several questions about one reply cost one
hearing. Not thread-safe.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from playground import recogniser, task
from playground.voices import manner_named
from reward.types import MissingScore, Score, SpokenReply
from speech.audio import Waveform

LOWEST, HIGHEST = 1.0, 5.0
PITCH_OF = {"high": 15.8, "low": 6.7}
"""Semitones above 100 Hz of the answering voice in each manner, after the codec (tests/playground measures them)."""
# fmt: off
LENGTHS = {
    **dict.fromkeys(task.OPENERS.values(), 0.22),
    **dict.fromkeys(task.CARRIER, 0.1),
    "zero": 0.62, "one": 0.5, "two": 0.48, "three": 0.51,
    "seven": 0.65, "eight": 0.47, "nine": 0.54, "ten": 0.52,
    "eleven": 0.65, "twelve": 0.71, "thirteen": 0.69, "fourteen": 0.7,
    "fifteen": 0.72, "sixteen": 0.76, "seventeen": 0.82, "eighteen": 0.59,
}
# fmt: on
"""Seconds of each word, midway between the answering voice's fast and slow (geometric mean of both)."""
TEMPO_OF = {"fast": 0.74, "slow": 1.34}
"""Active seconds of a reply in each manner, relative to the sum of LENGTHS, after the codec."""
NO_SPEECH = MissingScore("no speech in the reply")


class HeardReply:
    """A recogniser of the replies that this task can have, which remembers the last sound it heard."""

    def __init__(self) -> None:
        openers, answers = list(task.OPENERS.values()), list(task.ANSWERS)
        self._recogniser = recogniser.Recogniser([openers, answers, *([word] for word in task.CARRIER)])
        self._sound: Waveform | None = None
        self._heard = ""

    def hear(self, waveform: Waveform) -> str:
        """The words heard, "" when nothing like a reply is heard."""
        if waveform is not self._sound:
            self._heard = self._recogniser.hear(waveform)
            self._sound = waveform
        return self._heard


@cache
def hearing() -> HeardReply:
    """The hearing that all raters of this process share."""
    return HeardReply()


class Answer:
    """5 when the text is a well-formed reply with the right answer, else 1: an empty text is simply wrong."""

    name = "answer"
    version = "playground-answer-1"

    def rate(self, spoken: SpokenReply) -> Score:
        return HIGHEST if _answers(spoken.text, spoken) else LOWEST


class Format:
    """5 when the text has the form of a reply, "opener answer it is", right or wrong, else 1."""

    name = "format"
    version = "playground-format-1"

    def rate(self, spoken: SpokenReply) -> Score:
        return HIGHEST if task.said_answer(spoken.text) is not None else LOWEST


class Heard:
    """5 when the recogniser hears in the sound exactly the words that the text says, else 1."""

    name = "heard"
    version = "playground-heard-2"

    def rate(self, spoken: SpokenReply) -> Score:
        if spoken.waveform is None:
            return NO_SPEECH
        return HIGHEST if self.hear(spoken) == spoken.text and spoken.text else LOWEST

    def hear(self, spoken: SpokenReply) -> str:
        """The words heard in the reply, "" without speech."""
        return "" if spoken.waveform is None else hearing().hear(spoken.waveform)

    def detail(self, spoken: SpokenReply) -> dict[str, str]:
        """What was heard, and whether the right answer was in it: "spoken_right" is "yes" or "no"."""
        heard = self.hear(spoken)
        return {"heard": heard, "spoken_right": "yes" if _answers(heard, spoken) else "no"}


class Manner:
    """How near pitch and tempo come to the manner asked for: 1 + 2 · pitch + 2 · tempo, each in [0, 1].

    Each part is the place of the measured value between the answering voice's other manner (0) and the one asked
    for (1): median fundamental frequency in semitones; logarithm of active seconds relative to the words' usual length.
    Missing without speech, without a voiced frame, or for a text that is empty or has words of unknown length.
    """

    name = "manner"
    version = "playground-manner-1"

    def __init__(self) -> None:
        self._last: tuple[SpokenReply, tuple[float, float] | MissingScore] | None = None

    def rate(self, spoken: SpokenReply) -> Score:
        asked = manner_named(spoken.prompt.facts["manner"])
        measured = self._measured(spoken)
        if isinstance(measured, MissingScore):
            return measured
        semitones, tempo = measured
        high = _place(semitones, PITCH_OF["low"], PITCH_OF["high"])
        slow = _place(np.log(tempo), np.log(TEMPO_OF["fast"]), np.log(TEMPO_OF["slow"]))
        pitch_part = high if asked.pitch == "high" else 1.0 - high
        tempo_part = slow if asked.tempo == "slow" else 1.0 - slow
        return LOWEST + 2.0 * pitch_part + 2.0 * tempo_part

    def detail(self, spoken: SpokenReply) -> dict[str, str]:
        """Pitch in semitones above 100 Hz, tempo as a multiple of the words' usual length; {} where Missing."""
        measured = self._measured(spoken)
        if isinstance(measured, MissingScore):
            return {}
        return {"pitch": f"{measured[0]:.1f}", "tempo": f"{measured[1]:.3f}"}

    def _measured(self, spoken: SpokenReply) -> tuple[float, float] | MissingScore:
        if self._last is None or self._last[0] is not spoken:
            self._last = spoken, _measure(spoken)
        return self._last[1]


def _answers(words: str, spoken: SpokenReply) -> bool:
    """Whether these words are a reply with the right answer."""
    return task.said_answer(words) == spoken.prompt.facts["answer"]


def _measure(spoken: SpokenReply) -> tuple[float, float] | MissingScore:
    """(semitones above 100 Hz, active seconds relative to the sum of LENGTHS)."""
    if spoken.waveform is None:
        return NO_SPEECH
    words = spoken.text.split()
    if not words or any(word not in LENGTHS for word in words):
        return MissingScore("no text to measure the tempo by")
    semitones = recogniser.pitch(spoken.waveform)
    if semitones is None:
        return MissingScore("no voiced sound")
    return semitones, recogniser.active_seconds(spoken.waveform) / sum(LENGTHS[word] for word in words)


def _place(value: float, zero: float, one: float) -> float:
    return float(np.clip((value - zero) / (one - zero), 0.0, 1.0))


class SpokenRight:
    """5 when the right answer is what is heard, else 1: the listener's own measure, whatever the text says."""

    name = "spoken_right"
    version = "playground-spoken-right-2"

    def rate(self, spoken: SpokenReply) -> Score:
        if spoken.waveform is None:
            return NO_SPEECH
        return HIGHEST if _answers(hearing().hear(spoken.waveform), spoken) else LOWEST
