"""What a checkpoint is, in a few letters that change with everything that the model and its prompts are made of."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speech.checkpoint import check_checkpoint
from speech.errors import InputError

READ = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")
"""Endings of the files that count: weights and their index, configuration, tokenizer, templates, code."""
AT_ONCE = 4
LETTERS = 12


def check_judge(path: Path, *, trust_remote_code: bool) -> None:
    """Raises InputError for a folder that holds no checkpoint, or one that is not trusted."""
    if not path.is_dir():
        raise InputError(f"checkpoint: {str(path)!r} is no folder")
    try:
        check_checkpoint(path, trust_remote_code=trust_remote_code)
    except InputError as error:  # which speaks of the model that is trained
        raise InputError(str(error).replace("model.", "")) from error


def fingerprint(path: Path) -> str:
    """SHA-256 over names and contents, shortened. All of the weights are read: two fine-tunings of a model differ in
    nothing else. About a second for two gigabytes, once for a judge; vLLM then finds them in the page cache."""
    files = sorted(file for file in path.iterdir() if file.suffix in READ and file.is_file())
    with ThreadPoolExecutor(AT_ONCE) as threads:
        contents = list(threads.map(_of_file, files))
    whole = hashlib.sha256()
    for file, content in zip(files, contents, strict=True):
        whole.update(f"{len(file.name)} {file.name} ".encode() + content)
    return whole.hexdigest()[:LETTERS]


def _of_file(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
