"""Data files, row by row: all that `duet train` would refuse at the first such row, and what it would not notice.

Rows are passed through once, and no more of one is kept than its lengths, and of the first million a digest, so that a
file may be larger than memory.

Sound files that facts of prompts name, for raters that compare with them.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import resolve_within
from configs.schema import Config, longest_prompt
from controller.inputs import check_reply
from deploy.preflight.finding import FEW, CheckReporter, Finding, RowErrors
from speech.grammar import Structure
from speech.types import Demonstration, PreferencePair, Prompt
from speech.vocabulary import Channel, Vocabulary

DATA = CheckReporter("data")


SOME = 0.01
"""Share of the rows that may be the same as others, as happens where rows are drawn."""


COMPARED = 1_000_000
"""Rows that others are compared with, the first ones: a digest and a place take about 200 bytes."""


PAGE = "see docs/own-data.md for what each column must hold"


KEEP_ONE = "leave them out, unless they are meant to count twice"


@dataclass(kw_only=True)
class DataScan:
    """What was seen in a file."""

    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    marks: dict[bytes, str] = field(default_factory=dict)
    """Digests of what the first `COMPARED` rows say, each with the first row that says it."""
    prompts: list[Prompt] = field(default_factory=list)
    """Those that were to be kept, and the first."""
    demonstrations: list[Demonstration] = field(default_factory=list)
    """The first few with speech."""

    def same(self, place: str, *parts: np.ndarray) -> str | None:
        """The row that said the same before, if one did."""
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(8) + part.tobytes())
        if len(self.marks) >= COMPARED:
            return self.marks.get(digest.digest())
        first = self.marks.setdefault(digest.digest(), place)
        return None if first == place else first


def scan_prompts(
    config: Config, vocabulary: Vocabulary, key: str, found: Iterable[tuple[str, Prompt | InputError]], keep: set[str]
) -> DataScan:
    """Looks at each prompt. key: where the configuration names the file. keep: ids of prompts that are wanted."""
    scan, room, lengths = DataScan(), longest_prompt(config), array("q")
    faults = bad, long, foreign, twice, empty = (
        RowErrors(DATA.error, "rows cannot be used", PAGE),
        RowErrors(
            DATA.error,
            f"prompts have more than the {room} tokens that model.max_model_len = {config.model.max_model_len} leaves "
            "beside "
            f"rollout.max_new_tokens = {config.rollout.max_new_tokens}",
            "leave them out, raise model.max_model_len, or lower rollout.max_new_tokens",
        ),
        _foreign(),
        RowErrors(DATA.warning, "prompts have the very tokens of another", KEEP_ONE, bearable=SOME),
        RowErrors(
            DATA.warning, "prompts have no text for raters and reports", "write the question's words into `text`"
        ),
    )
    for place, prompt in found:
        scan.rows += 1
        if isinstance(prompt, InputError):
            bad.add(str(prompt))
            continue
        if prompt.id in keep or not scan.prompts:
            scan.prompts.append(prompt)
        lengths.append(len(prompt.token_ids))
        if lengths[-1] > room:
            long.add(f"{place} has {lengths[-1]}")
        if which := _padding(prompt.token_ids, vocabulary):
            foreign.add(f"{place} has {which}")
        if before := scan.same(place, prompt.token_ids):
            twice.add(f"{place} as {_row(before)}")
        if not prompt.text.strip():
            empty.add(place)
    scan.findings += [finding for fault in faults for finding in fault.findings(key, scan.rows)]
    if not scan.findings:
        also = f"; {twice.count:,} have the very tokens of another" if twice.count else ""
        scan.findings.append(DATA.fine(f"{key}: {scan.rows:,} prompts of {_spread(lengths)}{also}"))
    return scan


def scan_demonstrations(
    config: Config,
    vocabulary: Vocabulary,
    held_to: Structure | None,
    found: Iterable[tuple[str, Demonstration | InputError]],
) -> DataScan:
    """Looks at each demonstration. held_to: the structure that sampling is held to."""
    key, scan, lengths, codes = "data.sft", DataScan(), array("q"), array("q")
    faults = bad, wrong, foreign, long, silent, twice = (
        RowErrors(DATA.error, "rows cannot be used", PAGE),
        RowErrors(DATA.error, "replies cannot be learnt from", PAGE),
        _foreign(),
        RowErrors(
            DATA.warning,
            f"replies are longer than rollout.max_new_tokens = {config.rollout.max_new_tokens}; the anchor would teach "
            "lengths "
            "at which samples are cut off",
            "raise rollout.max_new_tokens, or leave them out",
        ),
        RowErrors(
            DATA.warning,
            "replies have no speech for the anchor to hold",
            "leave them out, or set anchor.speech_weight=0 where no speech is wanted",
        ),
        RowErrors(DATA.warning, "are the same as another, prompt and reply", KEEP_ONE, bearable=SOME),
    )
    for place, row in found:
        scan.rows += 1
        if isinstance(row, InputError):
            bad.add(str(row))
            continue
        try:
            check_reply(config, held_to, place, "reply_ids", row.prompt_ids, row.reply_ids)
        except InputError as error:
            wrong.add(str(error))
        lengths.append(len(row.reply_ids))
        codes.append(int((vocabulary.channels(row.reply_ids) == Channel.SPEECH).sum()))
        if codes[-1] and len(scan.demonstrations) < FEW:
            scan.demonstrations.append(row)
        if which := _padding(row.prompt_ids, vocabulary):
            foreign.add(f"{place} has {which}")
        if lengths[-1] > config.rollout.max_new_tokens:
            long.add(f"{place} has {lengths[-1]}")
        if not codes[-1] and config.anchor.speech_weight > 0:
            silent.add(place)
        if before := scan.same(place, row.prompt_ids, row.reply_ids):
            twice.add(f"{place} as {_row(before)}")
    scan.findings += [finding for fault in faults for finding in fault.findings(key, scan.rows)]
    if not scan.findings:
        share = f"{sum(codes) / sum(lengths):.0%} of all their tokens are speech"
        scan.findings.append(DATA.fine(f"{key}: {scan.rows:,} replies of {_spread(lengths)}; {share}"))
    return scan


def scan_pairs(
    config: Config, held_to: Structure | None, found: Iterable[tuple[str, PreferencePair | InputError]]
) -> Iterator[Finding]:
    """Looks at each pair of a file. held_to: the structure that sampling is held to."""
    rows = 0
    bad = RowErrors(DATA.error, "rows cannot be used", PAGE)
    wrong = RowErrors(DATA.error, "pairs cannot be learnt from", PAGE)
    for place, pair in found:
        rows += 1
        if isinstance(pair, InputError):
            bad.add(str(pair))
            continue
        try:
            for name, ids in (("chosen_ids", pair.chosen_ids), ("rejected_ids", pair.rejected_ids)):
                check_reply(config, held_to, place, name, pair.prompt_ids, ids)
        except InputError as error:
            wrong.add(str(error))
    key = "algorithm.dpo.pairs_file"
    faults = [finding for fault in (bad, wrong) for finding in fault.findings(key, rows)]
    yield from faults or [DATA.fine(f"{key}: {rows:,} pairs")]


def check_overlap(train: DataScan, held_out: dict[str, DataScan]) -> Iterator[Finding]:
    """Held-out prompts that are trained on."""
    for name, scan in held_out.items():
        both = RowErrors(
            DATA.warning,
            "prompts are trained on, so that their scores say little of others",
            "leave them out of data.prompts",
        )
        for mark, place in scan.marks.items():
            if mark in train.marks:
                both.add(f"{place} is {_row(train.marks[mark])} of data.prompts")
        yield from both.findings(f"data.validation.{name}", scan.rows)


def _foreign() -> RowErrors:
    return RowErrors(
        DATA.warning,
        "prompts hold ids of no token of the tokenizer, whose embeddings were never trained",
        "make the ids with the checkpoint's own tokenizer",
    )


def _padding(ids: np.ndarray, vocabulary: Vocabulary) -> str:
    """The first id that is a padding row of the embedding; "" when there is none."""
    beyond = ids[ids >= vocabulary.text_size]
    return str(beyond[0]) if len(beyond) else ""


def _row(place: str) -> str:
    """A place without its file."""
    return place[place.rindex("row ") :] if "row " in place else place


def _spread(lengths: array) -> str:
    """Shortest, longest and middle, in words."""
    ordered = np.sort(lengths)
    return f"{ordered[0]} to {ordered[-1]} tokens, half of them up to {ordered[len(ordered) // 2]}"


ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
"""How a fact ends that names a sound file."""


class Recordings:
    """Those of one data file, below whose folder they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = 0
        self._rates: Counter[int] = Counter()
        """Files by sample rate, Hz."""
        self._missing = RowErrors(
            DATA.error, "sound files are not there", f"put them below {folder}, or take the fact out"
        )
        self._broken = RowErrors(DATA.error, "sound files cannot be read", "write them anew, as WAV or FLAC")

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
            path = resolve_within(self._folder, value)
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
