"""Manifest of a learner checkpoint, to reject an unusable one before anything starts.

    DIRECTORY/model.safetensors, config.json, tokenizer …   a Hugging Face checkpoint (several files when it is large)
              adapter/adapter_model.safetensors …            where adapters are trained (`learner.lora`)
              optimizer/rank-0.safetensors …                optimizer and schedule, one file per rank
              (`learner.checkpoint_state`)
              learner.json                                  `CheckpointManifest`, written last: if it exists, all
              other files are complete

The optimizer's files can only be read by the same number of ranks. Reading a checkpoint never runs code.
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
    """Number of optimizer files. Resuming needs as many ranks."""
    zero_stage: int
    """The layout of the optimizer state differs between stages."""
    dtype: str
    parameters: str
    """SHA-256 of all parameters' names, shapes and trained flags (`fingerprint`)."""
    version: int
    """Weight version: steps taken or skipped."""
    skips: int
    """Consecutive steps skipped before it."""
    files: dict[str, int]
    """Size in bytes of each of the learner's files, by path in the checkpoint."""

    @classmethod
    def write(cls, directory: Path, *, patterns: Iterable[str], **facts: object) -> None:
        """Describe the files that match the patterns, atomically. Raises OSError."""
        paths = sorted(path for pattern in patterns for path in directory.glob(pattern) if path.is_file())
        files = {str(p.relative_to(directory)): p.stat().st_size for p in paths if p.name != MANIFEST}
        aside = directory / f".{MANIFEST}.part"
        with aside.open("w") as file:
            manifest = cls(files=files, **facts)  # type: ignore[arg-type]  # the other fields
            json.dump(asdict(manifest), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(directory / MANIFEST)


def read_manifest(directory: Path) -> CheckpointManifest:
    """Read the manifest. Raises InputError if it or a file is missing, or if a file is truncated."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text())
        manifest = CheckpointManifest(**{field.name: content[field.name] for field in fields(CheckpointManifest)})
        files = {str(name): int(size) for name, size in manifest.files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read, {error!r}: the checkpoint is incomplete; resume from another one"
        ) from error
    for name, size in files.items():
        file = directory / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes of {size}"
            raise InputError(f"{file} {state}: the checkpoint is damaged; resume from another one")
    return manifest


def check_checkpoint(directory: Path, *, ranks: int, zero_stage: int, dtype: str) -> CheckpointManifest:
    """Raise InputError unless such a group can resume from the checkpoint."""
    manifest = read_manifest(directory)
    for key, then, now in (
        ("learner.num_workers", manifest.ranks, ranks),
        ("learner.zero_stage", manifest.zero_stage, zero_stage),
        ("model.dtype", manifest.dtype, dtype),
    ):
        if then != now:
            raise InputError(f"{key}: {now}, but {directory} was saved with {then}; resume with {key}={then}")
    return manifest


def fingerprint(parameters: Iterable[tuple[str, tuple[int, ...], bool]]) -> str:
    """Hash parameters, each given as name, shape and whether it is trained."""
    return hashlib.sha256(json.dumps(sorted(parameters)).encode()).hexdigest()


def as_os_error(error: SafetensorError) -> OSError:
    """Restore the errno, which safetensors reports only as text. A full disk becomes OSError(ENOSPC)."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), f"{os.strerror(int(found[1]))}: {error}") if found else OSError(str(error))
