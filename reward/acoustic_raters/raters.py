"""Acoustic raters. Each maps one measure to 1..5 by two anchor points from its arguments and notes the measure.

    reward:
      raters:
        - {name: heard, target: 'reward.acoustic_raters.raters:WordError', kwargs: {recogniser: 'mine.ears:Whisper'}}
        - {name: tempo, target: 'reward.acoustic_raters.raters:Tempo', kwargs: {low: 2.0, high: 3.5}}

The map is a straight line through the two points, clipped to 1..5. Without speech, or without anything to measure, the
score is missing. The raters are not thread-safe.
"""

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import resolve_within
from reward.acoustic_raters.dnsmos import PARTS, dnsmos
from reward.acoustic_raters.voice_similarity import CepstralStatistics, Embedder, cosine
from reward.llm_judges.prompts import rubric_digest
from reward.server import HEARD
from reward.types import MissingScore, Score, SpokenReply
from speech.acoustics import measures, pitch_semitones, word_changes
from speech.audio import Waveform
from speech.registry import load_object

LOWEST, HIGHEST = 1.0, 5.0


@dataclass(frozen=True, kw_only=True)
class ScoreAnchors:
    """The measures that score 1 and 5. Scores between are linear; beyond, they are clipped."""

    one: float
    five: float

    def __post_init__(self) -> None:
        for name in ("one", "five"):
            number(name, getattr(self, name))
        if self.one == self.five:
            raise InputError(f"one, five: both are {self.one}; they must differ")

    def score(self, measure: float) -> float:
        """Return the score of a measure."""
        share = (measure - self.one) / (self.five - self.one)
        return LOWEST + (HIGHEST - LOWEST) * min(max(share, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class ScoreTarget:
    """A range of good measures, and the distance from it that scores lowest."""

    low: float
    high: float
    tolerance: float

    def __post_init__(self) -> None:
        for name in ("low", "high", "tolerance"):
            number(name, getattr(self, name))
        if self.low > self.high:
            raise InputError(f"low: {self.low} must not be above high, {self.high}")
        if self.tolerance <= 0:
            raise InputError(f"tolerance: {self.tolerance} must be above 0")

    def score(self, measure: float) -> float:
        """Return 5 within the range, 1 at `tolerance` or more outside it, linear in between."""
        outside = max(self.low - measure, measure - self.high, 0.0)
        return ScoreAnchors(one=self.tolerance, five=0.0).score(outside)


def number(name: str, value: object) -> float:
    """Return the value as a float. Raise InputError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name}: {value!r} must be a finite number")
    return float(value)


NO_SPEECH = MissingScore("no speech in the reply")


UNITS = ("word", "character")


class AcousticRater:
    """Base of the raters: a measure of a reply, kept for `detail`, and a scale."""

    unit = ""
    """Unit of the measure, for people."""

    def __init__(self, name: str, scale: ScoreAnchors | ScoreTarget, *version_parts: object) -> None:
        """version_parts: everything else that the score depends on."""
        if not isinstance(name, str) or not name:
            raise InputError(f"name: {name!r} must be non-empty text")
        self.name, self._scale = name, scale
        self.version = f"{type(self).__name__.lower()}-1-{rubric_digest(repr(scale), *version_parts)}"
        self._last: tuple[SpokenReply | None, float | MissingScore] = (None, NO_SPEECH)

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        """Return the measure of a reply, or why there is none."""
        raise NotImplementedError

    def rate(self, spoken: SpokenReply) -> Score:
        measured = self._measure_once(spoken)
        return measured if isinstance(measured, MissingScore) else self._scale.score(measured)

    def detail(self, spoken: SpokenReply) -> dict[str, str]:
        """Return the measure as text."""
        measured = self._measure_once(spoken)
        if isinstance(measured, MissingScore):
            return {}
        return {f"{self.name}_measure": f"{measured:.4g} {self.unit}".strip()}

    def _measure_once(self, spoken: SpokenReply) -> float | MissingScore:
        if self._last[0] is not spoken:
            self._last = (spoken, NO_SPEECH if spoken.waveform is None else self.measure(spoken, spoken.waveform))
        return self._last[1]


class LightRater(AcousticRater):
    """A rater that loads nothing, so its arguments can be checked on the machine that starts the run."""

    @classmethod
    def check(cls, arguments: dict[str, Any]) -> None:
        """Raise InputError for invalid arguments."""
        cls(**arguments)


class WordError(AcousticRater):
    """Word error rate between a recogniser's transcript and the reply's text.

    Both sides are normalised: case, Unicode form and punctuation do not count. Default anchors: 0 errors score 5, every
    second word wrong (0.5) scores 1.

    Args:
        recogniser: "module:Class" with `hear(waveform) -> str`, or "module:function" of a waveform.
        recogniser_arguments: Arguments of the class.
        unit: "word", or "character" for languages without blanks.
    """

    def __init__(
        self,
        recogniser: str,
        recogniser_arguments: dict[str, Any] | None = None,
        unit: str = "word",
        five: float = 0.0,
        one: float = 0.5,
        name: str = "heard",
    ) -> None:
        if unit not in UNITS:
            raise InputError(f"unit: {unit!r} is unknown; allowed: {', '.join(UNITS)}")
        recognise, version = _load_callable("recogniser", recogniser, recogniser_arguments, "hear")
        super().__init__(name, ScoreAnchors(one=one, five=five), recogniser, recogniser_arguments or {}, version, unit)
        self._recognise, self._text_unit = recognise, unit
        self.unit = f"changes per {unit}"
        self._heard = ""

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        self._heard = self._recognise(waveform)
        if not isinstance(self._heard, str):
            raise TypeError(f"the recogniser returned a {type(self._heard).__name__}; expected text")
        reference, heard = (_normalise(text, self._text_unit) for text in (spoken.text, self._heard))
        return word_changes(reference, heard) / len(reference) if reference else MissingScore("no text to compare with")

    def detail(self, spoken: SpokenReply) -> dict[str, str]:
        detail = super().detail(spoken)
        return detail | ({} if spoken.waveform is None else {HEARD: self._heard})


class SignalQuality(LightRater):
    """DNSMOS P.835 (`reward.acoustic_raters.dnsmos`); takes about 0.2 s for nine seconds of audio.

    Default anchors: the model's own scale, 1 to 5.

    Args:
        part: sig (speech), bak (background) or ovr (overall).
    """

    unit = "MOS"

    def __init__(self, part: str = "ovr", five: float = 5.0, one: float = 1.0, name: str = "quality") -> None:
        if part not in PARTS:
            raise InputError(f"part: {part!r} is unknown; allowed: {', '.join(PARTS)}")
        super().__init__(name, ScoreAnchors(one=one, five=five), part)
        self._part = part

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        return dnsmos(waveform, self._part) if len(waveform.samples) else NO_SPEECH


class Pitch(LightRater):
    """Median pitch in semitones above 100 Hz (`speech.acoustics`).

    It scores 5 from `low` to `high`, and 1 at `tolerance` or more outside.
    """

    unit = "semitones above 100 Hz"

    def __init__(self, low: float, high: float, tolerance: float = 6.0, name: str = "pitch") -> None:
        super().__init__(name, ScoreTarget(low=low, high=high, tolerance=tolerance))

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        pitch = pitch_semitones(waveform)
        return MissingScore("no voiced sound") if pitch is None else pitch


class Tempo(LightRater):
    """Words of the text per second, from the first sound to the last.

    It scores 5 from `low` to `high`, and 1 at `tolerance` or more outside.
    """

    unit = "words a second"

    def __init__(self, low: float, high: float, tolerance: float = 1.5, name: str = "tempo") -> None:
        super().__init__(name, ScoreTarget(low=low, high=high, tolerance=tolerance))

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        tempo = measures(waveform, spoken.text).get("words_per_second")
        return MissingScore("no words or no sound to measure") if tempo is None else tempo


class VoiceSimilarity(AcousticRater):
    """Cosine between the speaker embeddings of the reply and of a reference.

    Anchors depend on the embedder; the defaults, 0.95 for a 5 and 0.6 for a 1, fit `CepstralStatistics`.

    Args:
        reference: A sound file. Give either this or `fact`.
        fact: Fact of a prompt that names a sound file below `sounds`.
        sounds: Folder of the prompts' Parquet file.
        embedder: "module:Class" with `embed(waveform)`, or "module:function". Empty: `CepstralStatistics`, which is
            weak.
        embedder_arguments: Arguments of the class.
    """

    unit = "cosine"

    def __init__(
        self,
        reference: str = "",
        fact: str = "",
        sounds: str = "",
        embedder: str = "",
        embedder_arguments: dict[str, Any] | None = None,
        five: float = 0.95,
        one: float = 0.6,
        name: str = "likeness",
    ) -> None:
        if bool(reference) == bool(fact):
            raise InputError("reference, fact: give one of them, a sound file or the fact that names one")
        if fact and not Path(sounds or "/dev/null").is_dir():
            raise InputError(f"sounds: {sounds!r} is not a folder; fact {fact!r} names files below it")
        if embedder:
            embed, version = _load_callable("embedder", embedder, embedder_arguments, "embed")
        else:
            baseline: Embedder = CepstralStatistics()
            embed, version = baseline.embed, baseline.version
        super().__init__(name, ScoreAnchors(one=one, five=five), embedder, embedder_arguments or {}, version, fact)
        self._embed, self._fact, self._sounds = embed, fact, sounds
        self._reference_embedding = lru_cache(maxsize=64)(self._embed_file)
        if reference:
            self._reference = Path(reference)
            try:
                embedding = self._reference_embedding(self._reference)
            except (OSError, RuntimeError, ValueError) as error:  # libsndfile's own error is a RuntimeError
                raise InputError(f"reference: {reference!r} cannot be used: {error}") from error
            self.version += f"-{rubric_digest([round(float(value), 4) for value in embedding])}"

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        if self._fact:
            file = spoken.prompt.facts.get(self._fact)
            if file is None:
                return MissingScore("no reference voice")
            reference = self._reference_embedding(resolve_within(Path(self._sounds), file))
        else:
            reference = self._reference_embedding(self._reference)
        try:
            own = self._embed(waveform)
        except ValueError:
            return MissingScore("no voice to compare")
        return cosine(np.asarray(own, dtype=np.float64), reference)

    def _embed_file(self, path: Path) -> np.ndarray:
        return np.asarray(self._embed(Waveform.read(path)), dtype=np.float64)


def _load_callable(key: str, use: str, arguments: dict[str, Any] | None, method: str) -> tuple[Callable, str]:
    """Load "module:name". Return the function, or the method of an instance of the class; and its version."""
    try:
        loaded = load_object(use)
        target = loaded(**arguments or {}) if isinstance(loaded, type) else loaded
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    except Exception as error:  # a user's class may raise anything
        raise InputError(f"{key}: {use!r} cannot be built: {error or type(error).__name__}") from error
    if arguments and not isinstance(loaded, type):
        raise InputError(f"{key}_arguments: {use!r} is a function, which takes the waveform only; remove the arguments")
    function = getattr(target, method, target)
    if not callable(function):
        raise InputError(f"{key}: {use!r} is neither a function nor a class with the method {method!r}")
    return function, str(getattr(target, "version", ""))


def _normalise(text: str, unit: str) -> list[str]:
    """Return words or characters, without case and punctuation."""
    kept = "".join(
        " " if c.isspace() or c in "-–—" else c
        for c in unicodedata.normalize("NFKC", text).casefold()
        if unicodedata.category(c)[0] in "LNMZ" or c.isspace() or c in "-–—"
    )
    return kept.split() if unit == "word" else [c for c in kept if not c.isspace()]
