"""Sound files that facts of prompts name, for raters that compare with them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from controller.doctor.findings import Faults, Finding, Voice
from speech.errors import InputError
from speech.paths import within
from speech.records import Prompt

DATA = Voice("data")
ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
"""How a fact ends that names a sound file."""


class Recordings:
    """Those of one data file, below whose folder they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = 0
        self._rates: Counter[int] = Counter()
        """Files by sample rate, Hz."""
        self._missing = Faults(
            DATA.error, "sound files are not there", f"put them below {folder}, or take the fact out"
        )
        self._broken = Faults(DATA.error, "sound files cannot be read", "write them anew, as WAV or FLAC")

    def watch(self, found: Iterable[tuple[str, Prompt | InputError]]) -> Iterator[tuple[str, Prompt | InputError]]:
        """Passes the rows on, and looks at what their facts name."""
        for place, prompt in found:
            if isinstance(prompt, Prompt):
                for fact, value in prompt.facts.items():
                    if value.lower().endswith(ENDINGS):
                        self._look(f"{place}, fact {fact!r}", value)
            yield place, prompt

    def findings(self, key: str, rate: int | None) -> Iterator[Finding]:
        """key: where the configuration names the data file. rate: of the codec, Hz; None: not known."""
        yield from self._missing.findings(key, self._files)
        yield from self._broken.findings(key, self._files)
        said = ", ".join(f"{count:,} of {found:,} Hz" for found, count in sorted(self._rates.items()))
        if rate is not None and set(self._rates) - {rate}:
            yield DATA.warning(
                f"{key}: sound files have other rates than the codec's {rate:,} Hz: {said}",
                "resample them, unless the rater that reads them takes the rate from the file",
            )
        elif self._rates:
            yield DATA.fine(f"{key}: sound files that facts name: {said}")

    def _look(self, place: str, value: str) -> None:
        import soundfile

        self._files += 1
        try:
            path = within(self._folder, value)
        except InputError as error:
            self._missing.add(f"{place}: {error}")
            return
        if not path.is_file():
            self._missing.add(f"{place}: {path}")
            return
        try:
            self._rates[soundfile.info(path).samplerate] += 1
        except (OSError, RuntimeError) as error:  # libsndfile's own error is a RuntimeError
            self._broken.add(f"{place}: {error}")
