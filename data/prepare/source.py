"""One source into one folder: whether that was done already, the work itself, and the manifest that says that it is."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from common.errors import InputError
from data.dataset import Dataset
from data.manifest import FORMAT, NAME, Manifest, ManifestEntry, PreparedFolder, fingerprint_of, read_manifest
from data.open_dataset import open_demonstrations, open_pairs, open_prompts
from data.parquet import UNFINISHED
from data.prepare.chat_format import VERSION
from data.prepare.encode import FEATURES, SCHEMAS, EncodeResult, recordings_in
from data.prepare.ray_job import EncodingConfig, EncodingPool, encode_all
from data.slices import FileSlice, file_slices, slice_digest, source_files
from speech.vocabulary import Vocabulary

REFUSED = "refused.jsonl"
OPENERS: dict[str, Callable[[Sequence[Path], Vocabulary], Dataset]] = {
    "prompts": open_prompts,
    "demonstrations": open_demonstrations,
    "pairs": open_pairs,
}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is to be made of a source."""

    source: Path
    recipe: EncodingConfig
    vocabulary: Vocabulary
    codec_version: str
    pool: EncodingPool
    rows: int
    """Of a slice, and so of a file, at least."""
    most_refused: float
    """Share of the rows that may be refused."""
    trust: bool
    """Whether recordings are taken to be what they were, without a look at each."""
    encoder_version: str = ""
    """Of the speech encoder; empty: none."""

    def run(self, join: Callable[[], None], say: Callable[[str], None]) -> Manifest:
        """Does what has not been done. join: joins Ray, where it is needed. Raises InputError, TimeoutError."""
        folder = self.recipe.folder
        pieces = list(chain.from_iterable(file_slices(file, self.rows) for file in source_files(self.source)))
        inputs = self._mark()
        if (known := self._known(inputs, pieces)) is not None:
            say(f"{folder}: prepared before, of the same source")
            return known
        self._clear()
        join()
        every = max(1, len(pieces) // 20)
        outcomes = encode_all(
            self.recipe,
            pieces,
            self.pool,
            lambda done: say(f"{folder}: {done} of {len(pieces)} parts") if done % every == 0 else None,
        )
        manifest = self._conclude(inputs, outcomes)
        manifest.write(folder)
        return manifest

    def _mark(self) -> str:
        """Of all that decides what is written, the recordings apart."""
        r = self.recipe
        said = {
            "format": FORMAT,
            "files": [[file.name, slice_digest(file)] for file in source_files(self.source)],
            "root": str(r.root),
            "family": [r.family.name, VERSION],
            "tokenizer": fingerprint_of(self.vocabulary),
            "codec": [r.codec, self.codec_version],
            "encoder": [r.hearing, self.encoder_version],
            "longest": [r.longest_prompt, r.longest],
            "rows": self.rows,
        }
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def _known(self, inputs: str, pieces: Sequence[FileSlice]) -> Manifest | None:
        """The manifest of the same preparation, if it was made and its files are whole."""
        folder = self.recipe.folder
        try:
            manifest = read_manifest(folder)
        except InputError:  # of an earlier format
            return None
        if manifest is None or manifest.inputs != inputs or _share(manifest) > self.most_refused:
            return None
        for name, found in manifest.folders.items():
            for part in found.parts:
                path = folder / name / part.name
                if not path.is_file() or path.stat().st_size != part.bytes:
                    return None
        if not self.trust and _joined([recordings_in(piece, self.recipe.root) for piece in pieces]) != (
            manifest.recordings
        ):
            return None
        return manifest

    def _clear(self) -> None:
        """Takes away what an earlier preparation left. Raises InputError for files that are none of ours."""
        folder, ours = self.recipe.folder, [*SCHEMAS, FEATURES, "refused"]
        try:
            mine = (folder / UNFINISHED).exists() or read_manifest(folder) is not None
        except InputError:  # of an earlier format
            mine = True
        if not mine and (strange := [name for name in (*ours, NAME, REFUSED) if (folder / name).exists()]):
            raise InputError(f"--to: {folder / strange[0]} is there, and `duet prepare` did not make it")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).write_text("`duet prepare` is at work here, or was interrupted: call it again\n")
        (folder / NAME).unlink(missing_ok=True)
        for name in ours:
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / REFUSED).unlink(missing_ok=True)

    def _conclude(self, inputs: str, outcomes: Sequence[EncodeResult]) -> Manifest:
        folder = self.recipe.folder
        refused: Counter[str] = sum((outcome.refused for outcome in outcomes), Counter())
        manifest = Manifest(
            inputs=inputs,
            recordings=_joined([outcome.recordings for outcome in outcomes]),
            family=self.recipe.family.name,
            codec=self.codec_version,
            tokenizer=fingerprint_of(self.vocabulary),
            rows=sum(outcome.rows for outcome in outcomes),
            refused=dict(refused.most_common()),
        )
        with (folder / REFUSED).open("wb") as file:
            for part in sorted((folder / "refused").iterdir()):
                with part.open("rb") as notes:
                    shutil.copyfileobj(notes, file)
        shutil.rmtree(folder / "refused")
        if _share(manifest) > self.most_refused or not (folder / "prompts").is_dir():
            counts = ", ".join(f"{reason} {count:,}" for reason, count in manifest.refused.items())
            raise InputError(
                f"{self.source}: {sum(refused.values()):,} of {manifest.rows:,} rows cannot be used ({counts}), more "
                f"than the share of {self.most_refused:g} that --most-refused allows; {folder / REFUSED} says why"
            )
        (folder / UNFINISHED).unlink()  # all is written; what follows reads the finished folder
        try:
            for name in SCHEMAS:
                if (folder / name).is_dir():
                    manifest.folders[name] = self._described(folder / name, OPENERS[name])
        except InputError:
            (folder / UNFINISHED).touch()
            raise
        return manifest

    def _described(self, folder: Path, opener: Callable[[Sequence[Path], Vocabulary], Dataset]) -> PreparedFolder:
        """Reads all of it once, as a run would without a manifest. Raises InputError, as for ids that come twice."""
        shards = opener([folder], self.vocabulary)
        return PreparedFolder(
            rows=len(shards),
            mark=shards.marks[0],
            longest=shards.longest,
            parts=[ManifestEntry(name=f.name, rows=rows, bytes=f.stat().st_size) for f, rows in shards.file_rows()],
        )


def _share(manifest: Manifest) -> float:
    """Of the rows that were refused."""
    return sum(manifest.refused.values()) / max(1, manifest.rows)


def _joined(marks: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(marks).encode()).hexdigest()[:16]
