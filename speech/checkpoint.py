"""What a Hugging Face checkpoint may bring: weights as safetensors, and code of its own only where that is trusted."""

import json
from pathlib import Path

from speech.errors import InputError

_DESCRIPTIONS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files in which `auto_map` names code that comes with the checkpoint."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_checkpoint(path: Path, *, trust_remote_code: bool) -> list[Path]:
    """The files of weights of a checkpoint, by name. Nothing of it is executed or unpickled.

    Raises InputError when there are none as safetensors, or when the checkpoint names code of its own and that is not
    trusted.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = [file.name for pattern in _PICKLED for file in sorted(path.glob(pattern))]
        instead = (
            f", only {pickled[0]}, which could run code when it is read; save it again with safe_serialization=True"
            if pickled
            else ""
        )
        raise InputError(f"model.checkpoint: {path} holds no *.safetensors file{instead}")
    if not trust_remote_code:
        for name in _DESCRIPTIONS:
            if code := _own_code(path / name):
                raise InputError(
                    f"model.checkpoint: {path / name} wants code of its own to be run (auto_map: {code}); set "
                    "model.trust_remote_code=true if you trust whoever wrote it"
                )
    return files


def _own_code(file: Path) -> str:
    if not file.is_file():
        return ""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model.checkpoint: {file} is not JSON: {error}") from error
    named = found.get("auto_map") if isinstance(found, dict) else None
    return ", ".join(map(str, named.values() if isinstance(named, dict) else [named])) if named else ""
