"""Architectures that transformers has not, each a module of this folder, and how any family's model is loaded.

torch and transformers are imported by the caller that loads a model, not by `speech`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.families import Family, import_object

if TYPE_CHECKING:
    import torch


def load_pretrained(path: Path | str, family: Family, *, dtype: "torch.dtype", trust_remote_code: bool) -> Any:
    """A checkpoint of that family as its own architecture, in evaluation mode.

    One that the family names is taken whatever the checkpoint's config.json calls itself, and without code that comes
    with it. Raises OSError, ValueError or SafetensorError for what cannot be loaded.
    """
    trusted = trust_remote_code and not family.architecture
    kind = model_class(family)
    return kind.from_pretrained(path, dtype=dtype, use_safetensors=True, trust_remote_code=trusted)


def model_class(family: Family) -> Any:
    """The class that loads a family's models. One of ours is known to transformers from then on."""
    from transformers import AutoModelForCausalLM

    return import_object(family.architecture) if family.architecture else AutoModelForCausalLM
