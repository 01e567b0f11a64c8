"""What a learner's checkpoint says of itself, so that one that cannot be used is refused before anything starts.

    DIRECTORY/model.safetensors, config.json, tokenizer …   a Hugging Face checkpoint (several files when it is large)
              adapter/adapter_model.safetensors …            where adapters are trained (`learner.lora`)
              optimizer/rank-0.safetensors …                optimiser and schedule, a file a rank
              (`learner.checkpoint_state`)
              learner.json                                  `CheckpointManifest`, written last: with it, the others
              are whole

The files of the optimiser belong to as many ranks as wrote them. Nothing here can run code when it is read.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError

from common.errors import InputError

MANIFEST = "learner.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    ranks: int
    """How many files the optimiser is spread over; it goes on with as many."""
    zero_stage: int
    """The optimiser's state lies differently at every stage."""
    dtype: str
    parameters: str
    """SHA-256 of the names and shapes of all parameters, and of which are trained (`fingerprint`)."""
    version: int
    """Weight version: steps taken or skipped."""
    skips: int
    """Steps skipped in a row until then."""
    files: dict[str, int]
    """Bytes of every file of the learner's, by its path in the checkpoint."""

    @classmethod
    def write(cls, directory: Path, *, patterns: Iterable[str], **facts: object) -> None:
        """Describes the files that match the patterns. It appears whole or not at all. Raises OSError."""
        paths = sorted(path for pattern in patterns for path in directory.glob(pattern) if path.is_file())
        files = {str(p.relative_to(directory)): p.stat().st_size for p in paths if p.name != MANIFEST}
        aside = directory / f".{MANIFEST}.part"
        with aside.open("w") as file:
            manifest = cls(files=files, **facts)  # type: ignore[arg-type]  # the fields that a caller has to give
            json.dump(asdict(manifest), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(directory / MANIFEST)


def read_manifest(directory: Path) -> CheckpointManifest:
    """Raises InputError when the checkpoint is not whole: without its manifest, or with a file missing or cut off."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text())
        manifest = CheckpointManifest(**{field.name: content[field.name] for field in fields(CheckpointManifest)})
        files = {str(name): int(size) for name, size in manifest.files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read, {error!r}: the checkpoint is not whole; go on from another"
        ) from error
    for name, size in files.items():
        file = directory / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes of {size}"
            raise InputError(f"{file} {state}: the checkpoint is damaged; go on from another")
    return manifest


def check_checkpoint(directory: Path, *, ranks: int, zero_stage: int, dtype: str) -> CheckpointManifest:
    """Raises InputError unless a group of that kind can go on from the checkpoint."""
    manifest = read_manifest(directory)
    for key, then, now in (
        ("learner.num_workers", manifest.ranks, ranks),
        ("learner.zero_stage", manifest.zero_stage, zero_stage),
        ("model.dtype", manifest.dtype, dtype),
    ):
        if then != now:
            raise InputError(f"{key}: {now}, but {directory} was saved with {then}; go on with {key}={then}")
    return manifest


def fingerprint(parameters: Iterable[tuple[str, tuple[int, ...], bool]]) -> str:
    """parameters: name, shape, and whether it is trained."""
    return hashlib.sha256(json.dumps(sorted(parameters)).encode()).hexdigest()


def as_os_error(error: SafetensorError) -> OSError:
    """safetensors tells of the operating system's errors in words alone; here they have their number again, so that a
    full disk is OSError(ENOSPC), whoever wrote."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), f"{os.strerror(int(found[1]))}: {error}") if found else OSError(str(error))
