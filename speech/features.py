"""What a speech encoder made of a sound, on its way into the prompt of a model that hears features.

The frames lie in a file beside the data, as NumPy writes arrays: read where they are used, by every rollout worker and
learner rank, so that prompts stay as small as their ids. The encoder itself is not trained.
"""

from pathlib import Path

import numpy as np

from speech.errors import InputError


def write_features(path: Path, frames: np.ndarray) -> None:
    """frames: float [F, W], as wide as the model's embeddings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(frames, dtype=np.float16 if frames.dtype == np.float16 else np.float32))


def read_features(path: str, frames: int) -> np.ndarray:
    """float32 [F, W] of so many frames. Raises InputError for another number, and for a file that is none."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} holds no features of a speech encoder: {error}") from error
    if found.ndim != 2 or len(found) != frames or found.dtype.kind != "f":
        raise InputError(
            f"{path} holds {found.dtype} {list(found.shape)}; the prompt has slots for {frames} frames, float [F, W]"
        )
    return found.astype(np.float32)
