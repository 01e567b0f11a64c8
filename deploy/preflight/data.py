"""Checks of the data files, row by row, and of the sound files that they name.

`duet train` stops at the first bad row; these checks count them all, and also find rows that a run accepts but that are
probably wrong. Each row is read once. Only lengths are kept, and a digest of the first million rows, so a file may be
larger than memory.
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
from deploy.preflight.finding import MAX_EXAMPLES, CheckReporter, Finding, RowErrors
from speech.grammar import Structure
from speech.types import Demonstration, PreferencePair, Prompt
from speech.vocabulary import Channel, Vocabulary

DATA = CheckReporter("data")


MAX_DUPLICATE_SHARE = 0.01
"""Share of the rows that may be duplicates without a finding. Sampled data have a few."""


MAX_DIGESTS = 1_000_000
"""Rows with a stored digest, the first ones. A digest and its place take about 200 bytes."""


PAGE = "see docs/own-data.md for what each column must hold"


DEDUPLICATE = "remove them, unless they should count twice"


@dataclass(kw_only=True)
class DataScan:
    """Result of the scan of a data file."""

    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    digests: dict[bytes, str] = field(default_factory=dict)
    """Digests of the first `MAX_DIGESTS` rows, each with the first row that has it."""
    prompts: list[Prompt] = field(default_factory=list)
    """The first prompt, and the requested ones."""
    demonstrations: list[Demonstration] = field(default_factory=list)
    """The first few demonstrations with speech."""

    def find_duplicate(self, place: str, *parts: np.ndarray) -> str | None:
        """Return the first row with the same content, if there is one, and store the digest."""
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(8) + part.tobytes())
        if len(self.digests) >= MAX_DIGESTS:
            return self.digests.get(digest.digest())
        first = self.digests.setdefault(digest.digest(), place)
        return None if first == place else first


def scan_prompts(
    config: Config, vocabulary: Vocabulary, key: str, found: Iterable[tuple[str, Prompt | InputError]], keep: set[str]
) -> DataScan:
    """Scan prompts. `key`: the file's configuration key. `keep`: ids of prompts to return."""
    scan, max_length, lengths = DataScan(), longest_prompt(config), array("q")
    errors = bad, long, foreign, duplicate, empty = (
        RowErrors(DATA.error, "rows cannot be used", PAGE),
        RowErrors(
            DATA.error,
            f"prompts have more than the {max_length} tokens that model.max_model_len = {config.model.max_model_len} "
            "leaves "
            f"next to rollout.max_new_tokens = {config.rollout.max_new_tokens}",
            "remove them, raise model.max_model_len, or lower rollout.max_new_tokens",
        ),
        _foreign(),
        RowErrors(DATA.warning, "prompts have the same tokens as another", DEDUPLICATE, max_share=MAX_DUPLICATE_SHARE),
        RowErrors(
            DATA.warning, "prompts have no text for raters and reports", "set `text` to the transcript of the question"
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
        if lengths[-1] > max_length:
            long.add(f"{place} has {lengths[-1]}")
        if which := _padding(prompt.token_ids, vocabulary):
            foreign.add(f"{place} has {which}")
        if before := scan.find_duplicate(place, prompt.token_ids):
            duplicate.add(f"{place} as {_row(before)}")
        if not prompt.text.strip():
            empty.add(place)
    scan.findings += [finding for error in errors for finding in error.findings(key, scan.rows)]
    if not scan.findings:
        also = f"; {duplicate.count:,} have the same tokens as another" if duplicate.count else ""
        scan.findings.append(DATA.fine(f"{key}: {scan.rows:,} prompts of {_spread(lengths)}{also}"))
    return scan


def scan_demonstrations(
    config: Config,
    vocabulary: Vocabulary,
    structure: Structure | None,
    found: Iterable[tuple[str, Demonstration | InputError]],
) -> DataScan:
    """Scan demonstrations. `structure`: the grammar that constrains sampling, if any."""
    key, scan, lengths, codes = "data.sft", DataScan(), array("q"), array("q")
    errors = bad, wrong, foreign, long, silent, duplicate = (
        RowErrors(DATA.error, "rows cannot be used", PAGE),
        RowErrors(DATA.error, "replies cannot be trained on", PAGE),
        _foreign(),
        RowErrors(
            DATA.warning,
            f"replies are longer than rollout.max_new_tokens = {config.rollout.max_new_tokens}; the anchor would "
            "train lengths "
            "at which samples are truncated",
            "raise rollout.max_new_tokens, or remove them",
        ),
        RowErrors(
            DATA.warning,
            "replies have no speech for the anchor",
            "remove them, or set anchor.speech_weight=0 for a model without speech",
        ),
        RowErrors(
            DATA.warning, "have the same prompt and reply as another", DEDUPLICATE, max_share=MAX_DUPLICATE_SHARE
        ),
    )
    for place, row in found:
        scan.rows += 1
        if isinstance(row, InputError):
            bad.add(str(row))
            continue
        try:
            check_reply(config, structure, place, "reply_ids", row.prompt_ids, row.reply_ids)
        except InputError as error:
            wrong.add(str(error))
        lengths.append(len(row.reply_ids))
        codes.append(int((vocabulary.channels(row.reply_ids) == Channel.SPEECH).sum()))
        if codes[-1] and len(scan.demonstrations) < MAX_EXAMPLES:
            scan.demonstrations.append(row)
        if which := _padding(row.prompt_ids, vocabulary):
            foreign.add(f"{place} has {which}")
        if lengths[-1] > config.rollout.max_new_tokens:
            long.add(f"{place} has {lengths[-1]}")
        if not codes[-1] and config.anchor.speech_weight > 0:
            silent.add(place)
        if before := scan.find_duplicate(place, row.prompt_ids, row.reply_ids):
            duplicate.add(f"{place} as {_row(before)}")
    scan.findings += [finding for error in errors for finding in error.findings(key, scan.rows)]
    if not scan.findings:
        share = f"{sum(codes) / sum(lengths):.0%} of all their tokens are speech"
        scan.findings.append(DATA.fine(f"{key}: {scan.rows:,} replies of {_spread(lengths)}; {share}"))
    return scan


def scan_pairs(
    config: Config, structure: Structure | None, found: Iterable[tuple[str, PreferencePair | InputError]]
) -> Iterator[Finding]:
    """Scan preference pairs. `structure`: the grammar that constrains sampling, if any."""
    rows = 0
    bad = RowErrors(DATA.error, "rows cannot be used", PAGE)
    wrong = RowErrors(DATA.error, "pairs cannot be trained on", PAGE)
    for place, pair in found:
        rows += 1
        if isinstance(pair, InputError):
            bad.add(str(pair))
            continue
        try:
            for name, ids in (("chosen_ids", pair.chosen_ids), ("rejected_ids", pair.rejected_ids)):
                check_reply(config, structure, place, name, pair.prompt_ids, ids)
        except InputError as error:
            wrong.add(str(error))
    key = "algorithm.dpo.pairs_file"
    findings = [finding for error in (bad, wrong) for finding in error.findings(key, rows)]
    yield from findings or [DATA.fine(f"{key}: {rows:,} pairs")]


def check_overlap(train: DataScan, held_out: dict[str, DataScan]) -> Iterator[Finding]:
    """Check for held-out prompts that are also training prompts."""
    for name, scan in held_out.items():
        both = RowErrors(
            DATA.warning,
            "prompts are also training prompts, so their scores do not measure generalisation",
            "remove them from data.prompts",
        )
        for mark, place in scan.digests.items():
            if mark in train.digests:
                both.add(f"{place} is {_row(train.digests[mark])} of data.prompts")
        yield from both.findings(f"data.validation.{name}", scan.rows)


def _foreign() -> RowErrors:
    return RowErrors(
        DATA.warning,
        "prompts contain ids that the tokenizer does not have; their embeddings are untrained",
        "encode the prompts with the checkpoint's own tokenizer",
    )


def _padding(ids: np.ndarray, vocabulary: Vocabulary) -> str:
    """Return the first id that is a padding row of the embedding, or ""."""
    beyond = ids[ids >= vocabulary.text_size]
    return str(beyond[0]) if len(beyond) else ""


def _row(place: str) -> str:
    """Return a place without its file name."""
    return place[place.rindex("row ") :] if "row " in place else place


def _spread(lengths: array) -> str:
    """Describe the shortest, longest and median length."""
    ordered = np.sort(lengths)
    return f"{ordered[0]} to {ordered[-1]} tokens, half of them up to {ordered[len(ordered) // 2]}"


ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
"""Suffixes of facts that name a sound file."""


class Recordings:
    """Checks the sound files that the facts of one data file name, relative to its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = 0
        self._rates: Counter[int] = Counter()
        """Files by sample rate, Hz."""
        self._missing = RowErrors(
            DATA.error, "sound files do not exist", f"put them below {folder}, or remove the fact"
        )
        self._broken = RowErrors(DATA.error, "sound files cannot be read", "convert them to WAV or FLAC")

    def watch(self, found: Iterable[tuple[str, Prompt | InputError]]) -> Iterator[tuple[str, Prompt | InputError]]:
        """Yield the rows unchanged, and check the sound files of their facts."""
        for place, prompt in found:
            if isinstance(prompt, Prompt):
                for fact, value in prompt.facts.items():
                    if value.lower().endswith(ENDINGS):
                        self._check(f"{place}, fact {fact!r}", value)
            yield place, prompt

    def findings(self, key: str, rate: int | None) -> Iterator[Finding]:
        """Yield the findings. `key`: the file's configuration key. `rate`: the codec's rate in Hz; None if unknown."""
        yield from self._missing.findings(key, self._files)
        yield from self._broken.findings(key, self._files)
        listed = ", ".join(f"{count:,} of {found:,} Hz" for found, count in sorted(self._rates.items()))
        if rate is not None and set(self._rates) - {rate}:
            yield DATA.warning(
                f"{key}: sound files have other rates than the codec's {rate:,} Hz: {listed}",
                "resample them, unless the rater that reads them takes the rate from the file",
            )
        elif self._rates:
            yield DATA.fine(f"{key}: sound files that facts name: {listed}")

    def _check(self, place: str, value: str) -> None:
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
