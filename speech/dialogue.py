"""A dialogue before it is ids: turns, as people had them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """What one side said. Sound comes as codes of the model's codec, or as frames of its speech encoder."""

    role: str
    """system, user or assistant."""
    text: str | None = None
    """In words. Beside sound it stands before it (an instruction), except in the model's own turns, which say it."""
    codes: np.ndarray | None = None
    """int64 [S]."""
    features: int | None = None
    """How many frames the encoder made of the sound; they travel beside the ids (`Prompt.features`)."""
