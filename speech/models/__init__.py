"""Architectures that transformers has not, each a module of this folder, and how any family's model is loaded.

torch and transformers are imported by whoever loads a model, not by `speech`.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.families import Family

if TYPE_CHECKING:
    import torch


def pretrained(path: Path | str, family: Family, *, dtype: "torch.dtype", trust_remote_code: bool) -> Any:
    """A checkpoint of that family as its own architecture, in evaluation mode.

    One that the family names is taken whatever the checkpoint's config.json calls itself, and without code that comes
    with it. Raises OSError, ValueError or SafetensorError for what cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    if family.architecture:
        module, _, name = family.architecture.partition(":")
        kind, trust_remote_code = getattr(importlib.import_module(module), name), False
    return kind.from_pretrained(path, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code)
