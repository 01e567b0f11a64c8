"""The raters. Each maps one measure to 1..5 by two points that its arguments give, and notes the measure itself.

    reward:
      raters:
        - {name: heard, target: 'reward.acoustic_raters.raters:WordError', kwargs: {recogniser: 'mine.ears:Whisper'}}
        - {name: tempo, target: 'reward.acoustic_raters.raters:Tempo', kwargs: {low: 2.0, high: 3.5}}

Without speech, or where there is nothing to measure, the score is Missing. Not thread-safe.

From a measure to a score: a straight line through two points, cut off at the ends of 1..5. Pure.
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
    """What measure is worth a 1, and what a 5; between them the score goes in proportion, and beyond it stays."""

    one: float
    five: float

    def __post_init__(self) -> None:
        for name in ("one", "five"):
            number(name, getattr(self, name))
        if self.one == self.five:
            raise InputError(f"one, five: both are {self.one}; a measure that is worth both says nothing")

    def score(self, measure: float) -> float:
        share = (measure - self.one) / (self.five - self.one)
        return LOWEST + (HIGHEST - LOWEST) * min(max(share, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class ScoreTarget:
    """A range in which a measure is good, and how far outside it is as bad as can be."""

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
        """5 within the range, 1 from `tolerance` outside it on, in proportion between."""
        outside = max(self.low - measure, measure - self.high, 0.0)
        return ScoreAnchors(one=self.tolerance, five=0.0).score(outside)


def number(name: str, value: object) -> float:
    """Raises InputError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name}: {value!r} must be a number")
    return float(value)


NO_SPEECH = MissingScore("no speech in the reply")


UNITS = ("word", "character")


class AcousticRater:
    """What they have in common: a measure of a reply, kept for `detail`, and a scale."""

    unit = ""
    """Of the measure, for people."""

    def __init__(self, name: str, scale: ScoreAnchors | ScoreTarget, *parts: object) -> None:
        """parts: what else the score depends on."""
        if not isinstance(name, str) or not name:
            raise InputError(f"name: {name!r} must be text, and not empty")
        self.name, self._scale = name, scale
        self.version = f"{type(self).__name__.lower()}-1-{rubric_digest(repr(scale), *parts)}"
        self._last: tuple[SpokenReply | None, float | MissingScore] = (None, NO_SPEECH)

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        raise NotImplementedError

    def rate(self, spoken: SpokenReply) -> Score:
        found = self._measured(spoken)
        return found if isinstance(found, MissingScore) else self._scale.score(found)

    def detail(self, spoken: SpokenReply) -> dict[str, str]:
        found = self._measured(spoken)
        return {} if isinstance(found, MissingScore) else {f"{self.name}_measure": f"{found:.4g} {self.unit}".strip()}

    def _measured(self, spoken: SpokenReply) -> float | MissingScore:
        if self._last[0] is not spoken:
            self._last = (spoken, NO_SPEECH if spoken.waveform is None else self.measure(spoken, spoken.waveform))
        return self._last[1]


class LightRater(AcousticRater):
    """One that loads nothing: its arguments can be tried where a run is started from."""

    @classmethod
    def check(cls, arguments: dict[str, Any]) -> None:
        """Raises InputError for arguments that will not do."""
        cls(**arguments)


class WordError(AcousticRater):
    """What a recogniser hears against the reply's own text: changes over the text's words or characters.

    recogniser: "module:Class" with `hear(waveform) -> str`, or "module:function" of a waveform; recogniser_arguments:
    of the class. unit: "character" for languages that write no blanks. Letter case, accents of form and punctuation
    are left out on both sides. Anchors: 0 errors is a 5, every second word wrong (0.5) a 1.
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
        hears, version = _made("recogniser", recogniser, recogniser_arguments, "hear")
        super().__init__(name, ScoreAnchors(one=one, five=five), recogniser, recogniser_arguments or {}, version, unit)
        self._hears, self._by = hears, unit
        self.unit = f"changes per {unit}"
        self._heard = ""

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        self._heard = self._hears(waveform)
        if not isinstance(self._heard, str):
            raise TypeError(f"the recogniser gave a {type(self._heard).__name__}, not text")
        said, heard = (_plain(words, self._by) for words in (spoken.text, self._heard))
        return word_changes(said, heard) / len(said) if said else MissingScore("no text to compare with")

    def detail(self, spoken: SpokenReply) -> dict[str, str]:
        found = super().detail(spoken)
        return found | ({} if spoken.waveform is None else {HEARD: self._heard})


class SignalQuality(LightRater):
    """DNSMOS P.835 (`reward.acoustic_raters.dnsmos`), about 0.2 s for nine seconds of sound. part: sig (the speech),
    bak (quiet between the words) or ovr (overall). Anchors: the model's own scale, 1 to 5."""

    unit = "MOS"

    def __init__(self, part: str = "ovr", five: float = 5.0, one: float = 1.0, name: str = "quality") -> None:
        if part not in PARTS:
            raise InputError(f"part: {part!r} is unknown; allowed: {', '.join(PARTS)}")
        super().__init__(name, ScoreAnchors(one=one, five=five), part)
        self._part = part

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        return dnsmos(waveform, self._part) if len(waveform.samples) else NO_SPEECH


class Pitch(LightRater):
    """Median pitch in semitones above 100 Hz (`speech.acoustics`): a 5 from `low` to `high`, a 1 from `tolerance`
    outside on."""

    unit = "semitones above 100 Hz"

    def __init__(self, low: float, high: float, tolerance: float = 6.0, name: str = "pitch") -> None:
        super().__init__(name, ScoreTarget(low=low, high=high, tolerance=tolerance))

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        found = pitch_semitones(waveform)
        return MissingScore("no voiced sound") if found is None else found


class Tempo(LightRater):
    """Words of the text a second, from the first sound to the last: a 5 from `low` to `high`, a 1 from `tolerance`
    outside on."""

    unit = "words a second"

    def __init__(self, low: float, high: float, tolerance: float = 1.5, name: str = "tempo") -> None:
        super().__init__(name, ScoreTarget(low=low, high=high, tolerance=tolerance))

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        found = measures(waveform, spoken.text).get("words_per_second")
        return MissingScore("no words or no sound to measure") if found is None else found


class VoiceSimilarity(AcousticRater):
    """Cosine between the reply's voice and a reference's, by speaker embeddings.

    reference: a sound file; or `fact`, the fact of a prompt that names one below `sounds`, the folder of the prompts'
    Parquet file. embedder: "module:Class" with `embed(waveform)`, or "module:function"; none: `CepstralStatistics`,
    which is weak. Anchors: they belong to the embedder; those here, 0.95 for a 5 and 0.6 for a 1, are the plain one's.
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
            raise InputError(f"sounds: {sounds!r} is no folder; fact {fact!r} names files below it")
        if embedder:
            embed, version = _made("embedder", embedder, embedder_arguments, "embed")
        else:
            plain: Embedder = CepstralStatistics()
            embed, version = plain.embed, plain.version
        super().__init__(name, ScoreAnchors(one=one, five=five), embedder, embedder_arguments or {}, version, fact)
        self._embed, self._fact, self._sounds = embed, fact, sounds
        self._of_file = lru_cache(maxsize=64)(self._embed_file)
        if reference:
            self._reference = Path(reference)
            try:
                known = self._of_file(self._reference)
            except (OSError, RuntimeError, ValueError) as error:  # libsndfile's own error is a RuntimeError
                raise InputError(f"reference: {reference!r} cannot be used: {error}") from error
            self.version += f"-{rubric_digest([round(float(value), 4) for value in known])}"

    def measure(self, spoken: SpokenReply, waveform: Waveform) -> float | MissingScore:
        if self._fact:
            named = spoken.prompt.facts.get(self._fact)
            if named is None:
                return MissingScore("no reference voice")
            reference = self._of_file(resolve_within(Path(self._sounds), named))
        else:
            reference = self._of_file(self._reference)
        try:
            own = self._embed(waveform)
        except ValueError:
            return MissingScore("no voice to compare")
        return cosine(np.asarray(own, dtype=np.float64), reference)

    def _embed_file(self, path: Path) -> np.ndarray:
        return np.asarray(self._embed(Waveform.read(path)), dtype=np.float64)


def _made(key: str, use: str, arguments: dict[str, Any] | None, method: str) -> tuple[Callable, str]:
    """The function that "module:name" leads to: itself, or a method of what the class makes. And its version."""
    try:
        found = load_object(use)
        made = found(**arguments or {}) if isinstance(found, type) else found
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    except Exception as error:  # whatever a class of the user's own raises
        raise InputError(f"{key}: {use!r} cannot be built: {error or type(error).__name__}") from error
    if arguments and not isinstance(found, type):
        raise InputError(f"{key}_arguments: {use!r} is a function, which is called with the sound alone")
    called = getattr(made, method, made)
    if not callable(called):
        raise InputError(f"{key}: {use!r} is neither a function nor a class with the method {method!r}")
    return called, str(getattr(made, "version", ""))


def _plain(words: str, unit: str) -> list[str]:
    """Words or characters, without case and punctuation."""
    kept = "".join(
        " " if c.isspace() or c in "-–—" else c
        for c in unicodedata.normalize("NFKC", words).casefold()
        if unicodedata.category(c)[0] in "LNMZ" or c.isspace() or c in "-–—"
    )
    return kept.split() if unit == "word" else [c for c in kept if not c.isspace()]
