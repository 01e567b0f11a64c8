"""Encoder features in the prompts of a micro-batch: where their frames go in place of embeddings."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speech.features import read_features


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """K frames."""

    slots: Tensor
    """int64 [K], flat positions within the input ids, ascending."""
    frames: Tensor
    """float32 [K, W]."""

    @classmethod
    def of(
        cls, prompts: Iterable[tuple[np.ndarray, str | None, int]], slot: int | None, device: torch.device
    ) -> "Heard | None":
        """prompts: ids, the file of features, and the flat position where the prompt begins. None where no prompt has
        features."""
        slots, frames = [], []
        for ids, features, start in prompts:
            if features is not None:
                places = np.flatnonzero(ids == slot)
                slots.append(start + places)
                frames.append(read_features(features, len(places)))
        if not slots:
            return None
        return cls(
            slots=torch.from_numpy(np.concatenate(slots)).to(device),
            frames=torch.from_numpy(np.concatenate(frames)).to(device),
        )

    def before(self, position: int) -> "Heard":
        """What lies before a flat position."""
        count = int((self.slots < position).sum())
        return Heard(slots=self.slots[:count], frames=self.frames[:count])

    def put_into(self, embedded: Tensor) -> Tensor:
        """embedded: [R, L, W]. Returns the same with the frames in their slots."""
        flat = embedded.flatten(0, 1).index_put((self.slots,), self.frames.to(embedded.dtype))
        return flat.view(embedded.shape)
